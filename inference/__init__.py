"""The inference server: takes checkpoints in, answers over HTTP (arrow: publisher -> inference server -> whoever asks).

Effects  before torch is loaded, the threads of its team are told to wait awake for some 100 us, then to sleep: longer
         than what Python does between two products of a step, shorter than what lies between two steps. Asleep sooner
         they are woken for every product, and two are no faster than one; by default they stay awake for milliseconds,
         and a step beside other busy processes takes a hundred times as long (docs/log.md, Serving)
"""

import os

if os.environ.get("OMP_WAIT_POLICY", "passive").lower() == "passive":
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
