"""The n-th open, write, fsync, rename or mkdir of the daemon fails once: nothing is lost, and it heals by itself.

    python -m scripts.reliability.intake_faults [--runs 300] [--workers 2] [--only mkdir]

strace makes the k-th call of the main thread fail with ENOSPC, EIO, EMFILE, EROFS or EDQUOT. The daemon must go on
(exit 0 when idle) or end with exit 4 (2 when it is its configuration that cannot be read) and one line; a second,
healthy start finishes the rest. No traceback may be shown.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.reliability.intake_farm import (
    HANG_S,
    REPOSITORY,
    Dropped,
    count,
    daemon_argv,
    fresh,
    make_root,
    rows,
    run_daemon,
)

ERRORS = ("ENOSPC", "EIO", "EMFILE", "EROFS", "EDQUOT")
# How many calls of each kind a run of four files makes, about; opens are counted from the first that concerns the root.
SPANS = {"renameat2": 12, "rename": 24, "fsync": 40, "mkdir": 20, "write": 60, "openat": 240, "unlink": 10}


def first_open_of_ours(folder: Path) -> int:
    """The number of files Python opens before it touches the root: failing those proves nothing about us."""
    workspace = make_root(fresh(folder))
    trace = folder / "trace"
    argv = ["strace", "-o", str(trace), "-e", "trace=openat", *daemon_argv(workspace, "--exit-when-idle")]
    subprocess.run(argv, cwd=REPOSITORY, capture_output=True, timeout=HANG_S)
    lines = trace.read_text(errors="replace").splitlines()
    return next(at for at, line in enumerate(lines) if re.search(r'/config\.json"', line))


def faults(runs: int, opens: int) -> list[tuple[str, str, int]]:
    """`runs` different (call, error, when), spread over calls, errors and counts."""
    each = -(-runs // len(SPANS))
    chosen = []
    for call, span in SPANS.items():
        base = opens if call == "openat" else 0
        chosen += [(call, ERRORS[at % len(ERRORS)], base + 1 + int(at * span / each)) for at in range(each)]
    return chosen[:runs]


def work(folder: Path, mine: list[tuple[str, str, int]]) -> tuple[Counter[str], list[str]]:
    workspace = make_root(fresh(folder))
    dropped, ends, problems = Dropped(), Counter[str](), []
    for at, (call, error, when) in enumerate(mine):
        for number in range(4):
            dropped.drop(workspace.inbox / f"{at}-{number}.jsonl", rows(at * 10 + number))
        inject = ["strace", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]
        argv = [*inject, *daemon_argv(workspace, "--exit-when-idle")]
        try:
            done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, timeout=HANG_S)
        except subprocess.TimeoutExpired:
            problems.append(f"{call} {error} {when}: neither idle nor ended after {HANG_S:.0f} s")
            continue
        ends[f"exit {done.returncode}"] += 1
        said = done.stderr.decode(errors="replace")
        if done.returncode not in (0, 2, 4) or "Traceback" in said:
            problems.append(f"{call} {error} {when}: exit {done.returncode}: {said.strip()[-300:]!r}")
        if done.returncode != 0:
            run_daemon(workspace)
        found = count(workspace, dropped)
        if not found.ok:
            problems.append(f"{call} {error} {when}: {found} {found.lost[:2]} {found.stuck[:2]} {found.wrong[:2]}")
    return ends, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=SPANS, help="of those runs the ones in which this call fails")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dropforge-intake-faults")
    options = parser.parse_args()
    began = time.monotonic()
    chosen = faults(options.runs, first_open_of_ours(options.folder / "trace"))
    chosen = [fault for fault in chosen if options.only in (None, fault[0])]
    shares = [chosen[at :: options.workers] for at in range(options.workers)]
    with ThreadPoolExecutor(options.workers) as pool:
        results = list(pool.map(work, [options.folder / str(at) for at in range(options.workers)], shares))
    ends = sum((ends for ends, _ in results), Counter[str]())
    problems = [problem for _, found in results for problem in found]
    told = ", ".join(f"{times} x {end}" for end, times in sorted(ends.items()))
    print(f"intake faults: {len(chosen)} runs ({told}), {len(problems)} with a file lost, twice, stuck,", end=" ")
    print(f"a traceback or a hang, {time.monotonic() - began:.0f} s")
    for problem in problems:
        print(" ", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
