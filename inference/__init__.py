"""The inference server: takes checkpoints in, answers over HTTP (arrow: publisher -> inference server -> whoever asks).

Effects  before torch is loaded, the threads of its team are told to wait awake for some 10 us, then to sleep. By
         default they stay awake for milliseconds, and a step beside other busy processes takes a hundred times as long;
         asleep at once, they are woken on the core that is busy and two are no faster than one (docs/log.md, Serving)
"""

import os

if os.environ.get("OMP_WAIT_POLICY", "passive").lower() == "passive":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
