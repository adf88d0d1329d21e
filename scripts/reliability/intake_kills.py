"""kill -9 of the daemon's intake at chosen system calls; afterwards every dropped file has exactly one home.

    python -m scripts.reliability.intake_kills [--points 500] [--workers 2] [--folder DIR]

Each start is the recovery of the kill before it and the target of the next: strace delivers SIGKILL at the k-th rename,
mkdir, write, fsync, unlink or open of the daemon's main thread. After every tenth kill a start without strace is timed:
until its first heartbeat (it has claimed by then) and until all that was left lies in its home. Prints the counts;
exit 1 when one is not zero.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from core.paths import Workspace
from core.status import read_status
from scripts.reliability.intake_farm import (
    HANG_S,
    REPOSITORY,
    Dropped,
    count,
    daemon_argv,
    fresh,
    make_root,
    patiently,
    rows,
    run_daemon,
)

# Weighted towards the calls that move and make things; the highest k each is killed at.
CALLS = {"renameat2": 12, "rename": 14, "fsync": 40, "mkdir": 24, "write": 60, "unlink": 12, "openat": 400}
FILES_A_ROUND = 4


@dataclass
class Tally:
    """What one worker saw."""

    points: int = 0
    killed: int = 0
    ready_s: list[float] = field(default_factory=list)
    home_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def points(number: int) -> list[tuple[str, int]]:
    """`number` kill points, spread over the calls and over their count."""
    shares = {"renameat2": 0.3, "rename": 0.1, "fsync": 0.2, "mkdir": 0.1, "write": 0.1, "unlink": 0.1, "openat": 0.1}
    chosen = []
    for call, share in shares.items():
        wanted = max(1, round(number * share))
        step = CALLS[call] / wanted
        chosen += [(call, 1 + int(at * step)) for at in range(wanted)]
    return chosen[:number]


def work(folder: Path, mine: list[tuple[str, int]]) -> Tally:
    """Kill one root again and again; count after every few kills and at the end."""
    workspace = make_root(fresh(folder))
    dropped, tally = Dropped(), Tally()
    for at, (call, when) in enumerate(mine):
        for number in range(FILES_A_ROUND):
            name = f"{at}-{number}.jsonl"
            content = b"{bad\n" + rows(at * 10 + number) if number == 3 else rows(at * 10 + number)
            dropped.drop(workspace.inbox / name, content)
        (workspace.inbox / f"{at}-0.jsonl.meta.json").write_text('{"generator_id": "manual"}')
        inject = ["strace", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]
        code = run_daemon(workspace, strace=inject)
        tally.points += 1
        tally.killed += code in (-9, 137)
        if at % 10 == 9 or at == len(mine) - 1:
            code = start_again(workspace, tally)
            found = count(workspace, dropped)
            if not found.ok or code != 0:
                tally.problems.append(f"after {call} {when}: exit {code}, {found} {found.lost[:3]} {found.stuck[:3]}")
    return tally


def waits(workspace: Workspace) -> bool:
    """Whether a file has no home yet; looks at names only, since a daemon moves them meanwhile."""
    dropped = any(name.endswith(".jsonl") for name in os.listdir(workspace.inbox))
    return dropped or bool(os.listdir(workspace.claim_dir))


def start_again(workspace: Workspace, tally: Tally) -> int:
    """Let a healthy daemon finish what the kills left, and note how long it took. Returns its exit code."""
    began = time.monotonic()
    process = subprocess.Popen(
        daemon_argv(workspace, "--exit-when-idle"), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    heartbeat = workspace.status_file("daemon.json")
    if patiently(lambda: (read_status(heartbeat) or {}).get("pid") == process.pid, 60, 0.005):
        tally.ready_s.append(time.monotonic() - began)
    if patiently(lambda: not waits(workspace), 60, 0.005):
        tally.home_s.append(time.monotonic() - began)
    return process.wait(HANG_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dropforge-intake-kills")
    options = parser.parse_args()
    chosen = points(options.points)
    began = time.monotonic()
    with ThreadPoolExecutor(options.workers) as pool:
        shares = [chosen[at :: options.workers] for at in range(options.workers)]
        tallies = list(pool.map(work, [options.folder / str(at) for at in range(options.workers)], shares))
    problems = [problem for tally in tallies for problem in tally.problems]
    done, killed = sum(t.points for t in tallies), sum(t.killed for t in tallies)
    print(f"intake kills: {done} points, {killed} killed there, {done * FILES_A_ROUND} files,", end=" ")
    print(f"{len(problems)} rounds with a file lost, twice, stuck or with a wrong verdict,", end=" ")
    print(f"{time.monotonic() - began:.0f} s")
    print(f"  ready again: {_spread([s for t in tallies for s in t.ready_s])};", end=" ")
    print(f"all that was left home: {_spread([s for t in tallies for s in t.home_s])}")
    for problem in problems:
        print(" ", problem)
    return 1 if problems or killed < done * 0.5 else 0


def _spread(seconds: list[float]) -> str:
    return f"median {median(seconds):.2f} s, slowest {max(seconds):.2f} s of {len(seconds)}" if seconds else "never"


if __name__ == "__main__":
    sys.exit(main())
