"""Keeping the one trainer alive, and deciding when a death is a job's fault (arrow: queue -> trainer).

Starts   `python -m trainer`, holding our lock's descriptor
Reads    status/training_status.json, /proc/vmstat and the cgroup's count of out-of-memory kills
Writes   the verdict of a job whose trainer died twice on it, its move to failed/, after its commits were taken back
Units    seconds by a monotonic clock
Errors   none: a configuration the trainer refuses, or a disk it finds full, is a reason to stand still
"""

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass

from core.daemon.catalogue_view import CatalogueView
from core.daemon.children import USAGE, Children
from core.daemon.context import Context
from core.daemon.memory_kills import memory_kills
from core.daemon.orders import OrderBook
from core.daemon.supervisor import ChildExit, ChildSpec, State
from core.daemon.training_view import TrainingView
from core.job_queue import Job
from core.status import iso_now

logger = logging.getLogger(__name__)

STORAGE = 4
_DEATHS_ALLOWED = 2
_STOP_GRACE_S = 120.0  # a commit of a large model with its optimizer
_DUMP_S = 5.0  # between the request for a stack dump and the kill
# glibc gives the memory of each step back to the kernel and faults it in again; 1.2 x on training steps without that.
# oneDNN keeps a kernel of about 0.3 MB for each shape of the last so many it has met; a micro-batch has 60 to 80.
_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
}


@dataclass(slots=True)
class _Strike:
    """How often the trainer died on a job with no commit in between."""

    job_id: str
    head: str | None
    count: int


class TrainerKeeper:
    """Starts, watches and buries trainers."""

    def __init__(
        self,
        context: Context,
        children: Children,
        orders: OrderBook,
        training: TrainingView,
        view: CatalogueView,
        *,
        lock_fd: int | None,
        count_kills: Callable[[], int] = memory_kills,
    ) -> None:
        self._context = context
        self._orders = orders
        self._training = training
        self._view = view
        self._count_kills = count_kills
        self._kills_before = count_kills()
        self._strike: _Strike | None = None
        self._progress: tuple[object, object] = (None, None)
        self._progress_s = 0.0
        self._hung = False
        self._short_of_memory = False
        self._kill_at_s: float | None = None
        self._stopping = False
        self._refused_sha: str | None = None
        self._child = children.supervisor.add(
            ChildSpec(
                "trainer",
                children.python("trainer"),
                env={**_MEMORY, **children.environment},
                pass_fds=() if lock_fd is None else (lock_fd,),
                output=context.workspace.logs_dir / "trainer.out",
                stop_grace_s=_STOP_GRACE_S,
                final_codes=frozenset({USAGE}),
                counts=self._counts_towards_fatal,
                before_start=self._before_start,
            )
        )

    @property
    def alive(self) -> bool:
        return self._child.alive

    @property
    def at_rest(self) -> bool:
        return self._child.at_rest

    @property
    def given_up(self) -> bool:
        """No trainer will run again before the configuration changes."""
        return self._child.state is State.FATAL or self._refused_sha == self._context.settings.sha256

    def tick(self, now: float) -> None:
        """Start the trainer when it should run; watch its pulse."""
        self._explain()
        if self._stopping:
            self._kill_when_due(now)
            return
        if not self._child.alive:
            self._kill_at_s = None
            self._orders.settle_without_trainer(*self._head())
            if self._child.state is State.EXITED and not self._held_back():
                self.start(now)
            return
        self._watch_pulse(now)

    def start(self, now: float) -> None:
        self._progress_s = now
        self._child.start(now)

    def _before_start(self) -> None:
        """Also before the supervisor starts it again by itself."""
        self._orders.before_trainer_start(careful=self._short_of_memory)
        self._short_of_memory = False
        self._kills_before = self._count_kills()
        self._progress = (None, None)
        self._hung = False

    def ask_stop(self, now: float) -> None:
        """Let it commit and end: the order goes out, the grace begins."""
        if not self._stopping:
            self._stopping = True
            if self._child.alive:
                self._orders.ask("stop")
            self._child.expect_end(now)

    def config_changed(self) -> None:
        """Another configuration holds: what was refused or fatal is tried again."""
        self._refused_sha = None
        if self._child.state is State.FATAL:
            self._child.stop(0.0)

    def _head(self) -> tuple[str | None, int | None]:
        head = self._view.head
        return (head.id, head.step) if head is not None else (None, None)

    # --- standing still -------------------------------------------------------------------------------------------

    def _held_back(self) -> bool:
        """A refused configuration, or a reason of another part (profile, auto-generation)."""
        blocks = self._context.blocks.training
        return self._refused_sha == self._context.settings.sha256 or "config" in blocks

    def _explain(self) -> None:
        blocks = self._context.blocks.training
        refused = self._refused_sha is not None and self._refused_sha == self._context.settings.sha256
        if self._child.state is State.FATAL or refused:
            blocks["trainer"] = f"the trainer cannot run: {self._child.reason}"
        elif self._child.state is State.BACKOFF and self._last_code == STORAGE:
            blocks["trainer"] = f"the trainer waits for the disk: {self._child.reason}"
        else:
            blocks.pop("trainer", None)

    @property
    def _last_code(self) -> int | None:
        return self._child.last_exit.returncode if self._child.last_exit is not None else None

    # --- pulse ----------------------------------------------------------------------------------------------------

    def _watch_pulse(self, now: float) -> None:
        """A trainer with work to do whose status stands still is asked for its stacks, then killed."""
        if self._kill_at_s is not None:
            self._kill_when_due(now)
            return
        progress = self._training.progress
        busy = self._context.queue.active() is not None and not self._orders.paused
        if progress != self._progress or not busy:
            self._progress, self._progress_s = progress, now
        elif now - self._progress_s > self._context.settings.trainer.step_timeout_s:
            self._hung = True
            text = f"no step for {now - self._progress_s:.0f} s: its stacks, then a kill"
            self._context.events.emit("trainer_hung", text)
            self._child.signal(signal.SIGABRT)  # faulthandler writes every stack to logs/trainer.out
            self._kill_at_s = now + _DUMP_S

    def _kill_when_due(self, now: float) -> None:
        if self._kill_at_s is not None and now >= self._kill_at_s:
            self._child.signal(signal.SIGKILL)
            self._kill_at_s = None

    # --- deaths ---------------------------------------------------------------------------------------------------

    def _counts_towards_fatal(self, ended: ChildExit) -> bool:
        """Deaths on a job are the job's: they end in failed/, not in FATAL. A full disk is nobody's fault."""
        by_itself = ended.returncode != 0 and not ended.killed and ended.returncode != STORAGE
        return by_itself and self._context.queue.active() is None

    def on_exit(self, ended: ChildExit) -> None:
        """Judge one death (rule D11): blame the active job, or nobody."""
        if ended.returncode == USAGE and not ended.asked:
            self._refused_sha = self._context.settings.sha256
        if ended.asked or ended.returncode in (0, USAGE, STORAGE):
            return
        job = self._context.queue.active()
        by_memory = ended.killed and self._count_kills() > self._kills_before
        self._short_of_memory = by_memory
        to_blame = self._hung or by_memory or not ended.killed
        code = "hung" if self._hung else "out_of_memory" if by_memory else "crashed"
        cause = self._child.reason
        self._context.events.emit("trainer_died", f"{cause} ({code if to_blame else 'killed from outside'})")
        if job is None or not to_blame:
            return
        self._view.refresh()
        head = self._head()[0]
        strike = self._strike
        fresh = strike is None or strike.job_id != job.job_id or strike.head != head
        count = 1 if fresh or strike is None else strike.count + 1
        self._strike = _Strike(job.job_id, head, count)
        if count >= _DEATHS_ALLOWED:
            self._strike = None
            self.fail(job, code, f"the trainer ended {count} times on this job: {cause}")

    def fail(self, job: Job, code: str, message: str) -> None:
        """Take the job's commits back, write its verdict, move it to failed/. Only while no trainer lives."""
        taken_back = self._undo(job.job_id)
        verdict = job.verdict()
        verdict |= {"state": "failed", "code": code, "message": message[:500], "finished_at": iso_now()}
        verdict |= {"training": None, "checkpoint": None}
        verdict["fix"] = f"dropforge logs trainer shows the end; dropforge retry {job.job_id} tries again"
        job.write_verdict(verdict)
        self._context.queue.move(job, "failed")
        self._context.events.emit("job_given_up", message, job_id=job.job_id, code=code, undone=taken_back)

    def _undo(self, job_id: str) -> list[str]:
        catalogue = self._view.catalogue
        for manifest in catalogue.manifests():
            if any(entry["job_id"] == job_id for entry in manifest["jobs"]) and manifest["parent"] is not None:
                return catalogue.undo_after(manifest["parent"])
        return []
