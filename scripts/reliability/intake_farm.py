"""A root, files to drop, a daemon to kill, and the count that must come out right (arrow: inbox -> queue).

Used by the runners of this folder. The daemon runs with `--intake-only`: gates and queue are real, no trainer starts.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from core.job_queue import Job, JobQueue, data_file_in, is_job_id
from core.paths import LANES, Workspace

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 600.0  # far beyond what any start takes, also on a machine that is suspended for some minutes


def make_root(root: Path, **inbox: object) -> Workspace:
    """A ready root on the embedded model; nothing settles by default, so that runs are short."""
    subprocess.run(
        [sys.executable, "-m", "core.cli", "init", str(root)], cwd=REPOSITORY, check=True, capture_output=True
    )
    workspace = Workspace(root)
    document = json.loads(workspace.config_file.read_text())
    document["inbox"] = {**document.get("inbox", {}), "settle_s": 0, "sidecar_wait_s": 0, **inbox}
    document["validation"] = {**document.get("validation", {}), "level": "quick"}
    workspace.config_file.write_text(json.dumps(document))
    workspace.make_folders()
    return workspace


def rows(number: int, count: int = 3) -> bytes:
    """A good chat file, different for each number."""
    turns = [
        {"messages": [{"role": "user", "content": f"file {number}?"}, {"role": "assistant", "content": f"row {row}"}]}
        for row in range(count)
    ]
    return b"".join(json.dumps(turn).encode() + b"\n" for turn in turns)


@dataclass
class Dropped:
    """What was dropped, by content, so that it can be found again whatever its name and folder are then."""

    by_sum: dict[str, str] = field(default_factory=dict)

    def drop(self, path: Path, content: bytes) -> Path:
        """Drop by rename, as a careful producer does."""
        self.note(content, path.name)
        aside = path.with_name(f".{path.name}.tmp")
        aside.write_bytes(content)
        aside.rename(path)
        return path

    def note(self, content: bytes, name: str) -> None:
        self.by_sum[hashlib.sha256(content).hexdigest()] = name


def daemon_argv(workspace: Workspace, *more: str) -> list[str]:
    return [sys.executable, "-m", "core.daemon", "--root", str(workspace.root), "--intake-only", *more]


def run_daemon(workspace: Workspace, *, strace: list[str] | None = None, timeout_s: float = HANG_S) -> int:
    """Run the daemon until it is idle, is killed or gives up. Returns the exit code (negative or 137: killed)."""
    argv = daemon_argv(workspace, "--exit-when-idle")
    traced = [*strace, *argv] if strace else argv
    done = subprocess.run(
        traced, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=timeout_s
    )
    return done.returncode


@dataclass(frozen=True)
class Count:
    """Where the dropped files are now."""

    dropped: int
    home: int
    lost: list[str]
    twice: list[str]
    stuck: list[str]
    wrong: list[str]

    @property
    def ok(self) -> bool:
        return not (self.lost or self.twice or self.stuck or self.wrong)

    def __str__(self) -> str:
        parts = (f"{len(getattr(self, name))} {name}" for name in ("lost", "twice", "stuck", "wrong"))
        return f"{self.home} of {self.dropped} home, {', '.join(parts)}"


def count(workspace: Workspace, dropped: Dropped) -> Count:
    """Find every dropped file by its bytes. Home: once, in a lane or in rejected/, beside a verdict that says so."""
    homes: Counter[str] = Counter()
    wrong = []
    for job in [*_lane_jobs(workspace), *_rejected_jobs(workspace)]:
        content = data_file_in(job.folder).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        homes[digest] += 1
        verdict = job.verdict()
        expected = "queued" if job.lane in ("high", "normal", "low") else job.lane
        if verdict["state"] != expected or verdict["job_id"] != job.job_id:
            wrong.append(str(job.folder))
    stuck = [str(path) for path in _left_over(workspace)]
    stuck_sums = {hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in stuck if Path(path).is_file()}
    lost = [name for digest, name in dropped.by_sum.items() if digest not in homes and digest not in stuck_sums]
    twice = [dropped.by_sum.get(digest, digest) for digest, times in homes.items() if times > 1]
    return Count(len(dropped.by_sum), sum(1 for d in dropped.by_sum if homes[d]), lost, twice, stuck, wrong)


def _lane_jobs(workspace: Workspace) -> list[Job]:
    queue = JobQueue(workspace)
    return [job for lane in LANES for job in queue.jobs(lane)]


def _rejected_jobs(workspace: Workspace) -> list[Job]:
    names = sorted(name for name in os.listdir(workspace.rejected_dir) if is_job_id(name))
    return [Job(name, "rejected", workspace.rejected_dir / name) for name in names]


def _left_over(workspace: Workspace) -> list[Path]:
    """Files that still lie in the inbox or in a claim."""
    inbox = workspace.inbox
    files = [p for p in inbox.iterdir() if p.is_file() and p.name.endswith(".jsonl") and not p.name.startswith(".")]
    return [*files, *(p for p in workspace.claim_dir.rglob("*") if p.is_file())]


def patiently(condition: Callable[[], object], limit_s: float, every_s: float = 0.02) -> bool:
    """Wait for a condition. Looks are counted, not time: a machine that is suspended meanwhile costs no patience."""
    for _ in range(int(limit_s / every_s)):
        if condition():
            return True
        time.sleep(every_s)
    return bool(condition())


def fresh(folder: Path) -> Path:
    """An empty place for a root."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
