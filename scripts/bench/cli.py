"""How long the command line takes to answer: `--help` of every command, and status, jobs and verify on a working root.

    python -m scripts.bench.cli [ROUNDS]

Units    milliseconds of wall time, median and worst of ROUNDS (default 5), each a fresh process
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.cli import COMMANDS
from core.paths import Workspace

DROPFORGE = str(Path(sys.executable).with_name("dropforge"))


def timed_ms(argv: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run([DROPFORGE, *argv], capture_output=True, check=False)
    return (time.perf_counter() - start) * 1000


def main() -> int:
    """Print one line a command."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "root")
        subprocess.run([DROPFORGE, "init", str(workspace.root)], capture_output=True, check=True)
        root = ["--root", str(workspace.root)]
        asked = [[verb, "--help"] for verb in COMMANDS] + [["status", *root], ["jobs", *root], ["verify", *root]]
        for argv in asked:
            times = [timed_ms(argv) for _ in range(rounds)]
            print(f"{' '.join(argv[: 1 if root[0] in argv else 2]):24}{statistics.median(times):7.0f}{max(times):7.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
