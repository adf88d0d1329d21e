"""Twenty daemons started at once on one root, again and again: exactly one runs, the others end with 3 and say why.

python -m scripts.reliability.single_instance [--rounds 20] [--daemons 20]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.paths import Workspace
from scripts.reliability.intake_farm import REPOSITORY, daemon_argv, fresh, make_root, patiently


def one_round(workspace: Workspace, number: int) -> tuple[bool, int, str]:
    """Start `number` daemons. Returns whether one runs and the lock names it, how many ended with 3, and what one said
    (of a round that went wrong: what was found)."""
    started = [
        subprocess.Popen(daemon_argv(workspace), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(number)
    ]
    patiently(lambda: sum(p.poll() is None for p in started) <= 1, 120, 0.1)
    alive = [p for p in started if p.poll() is None]
    holder = json.loads(workspace.lock_file.read_text()).get("pid")
    said = ""
    refused = 0
    for process in started:
        if process in alive:
            process.send_signal(signal.SIGKILL if process.pid % 2 else signal.SIGTERM)
        _, error = process.communicate(timeout=60)
        text = error.decode(errors="replace").strip().rpartition("\n")[2]
        if process not in alive and process.returncode == 3 and f"pid {holder}" in text:
            refused += 1
            said = text
    right = len(alive) == 1 and alive[0].pid == holder and refused == number - 1
    ends = [p.returncode for p in started if p not in alive]
    return right, refused, said if right else f"the lock names {holder}; alive {[p.pid for p in alive]}; ends {ends}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--daemons", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / f"dropforge-single-{os.getuid()}")
    options = parser.parse_args()
    workspace = make_root(fresh(options.folder))
    # A pid that lives and is no daemon: a stale text must not block anybody.
    workspace.lock_file.write_text(json.dumps({"pid": os.getpid(), "since": "2020-01-01T00:00:00Z"}))
    began = time.monotonic()
    results = [one_round(workspace, options.daemons) for _ in range(options.rounds)]
    good = sum(right for right, _, _ in results)
    print(f"single instance: {good} of {options.rounds} rounds with exactly one of {options.daemons} running,", end=" ")
    print(f"{sum(refused for _, refused, _ in results)} refused with exit 3, {time.monotonic() - began:.0f} s")
    for number, (right, _, found) in enumerate(results):
        if not right:
            print(f"  round {number}: {found}")
    print("  they said:", results[-1][2])
    return 0 if good == options.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
