"""How long the command line takes to answer: `--help` of every command, and status, jobs and verify on a working root.

    python -m scripts.bench.cli [ROUNDS]

Units    milliseconds, medians of ROUNDS (default 5), each a fresh process: wall time, and processor time, which a
         busy machine changes less
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.cli import COMMANDS
from core.paths import Workspace

DROPFORGE = str(Path(sys.executable).with_name("dropforge"))


def timed_ms(argv: list[str]) -> tuple[float, float]:
    """Wall and processor time of one process."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([DROPFORGE, *argv], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (time.perf_counter() - start) * 1000, used_s * 1000


def main() -> int:
    """Print one line a command."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "root")
        subprocess.run([DROPFORGE, "init", str(workspace.root)], capture_output=True, check=True)
        root = ["--root", str(workspace.root)]
        asked = [[verb, "--help"] for verb in COMMANDS] + [["status", *root], ["jobs", *root], ["verify", *root]]
        for argv in asked:
            rows = [timed_ms(argv) for _ in range(rounds)]
            wall_ms, used_ms = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"{' '.join(argv[: 1 if root[0] in argv else 2]):24}{wall_ms:7.0f}{used_ms:7.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
