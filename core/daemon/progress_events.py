"""What the trainer has done, told as events: jobs begun and ended, commits (arrow: trainer -> checkpoints, seen back).

Reads    queue/active, the ended lanes, the catalogue          Errors  none
"""

from core.daemon.catalogue_view import CatalogueView
from core.daemon.context import Context
from core.errors import DropforgeError
from core.job_queue import Job
from core.paths import ENDED_LANES


class ProgressEvents:
    """Compares the active job and the newest commit with those of the last look."""

    def __init__(self, context: Context, view: CatalogueView) -> None:
        self._context = context
        self._view = view
        self._active: str | None = None
        self._told: set[str] | None = None

    @property
    def active(self) -> str | None:
        """The job in training, at the last look."""
        return self._active

    def tick(self) -> None:
        active = self._context.queue.active()
        now = active.job_id if active is not None else None
        if now != self._active:
            if self._active is not None:
                self._tell_end(self._active)
            if active is not None:
                self._tell_begin(active)
            self._active = now
        self._tell_commits()

    def _tell_begin(self, job: Job) -> None:
        try:
            name = job.verdict()["file"]
        except DropforgeError:  # it has gone on already
            name = job.job_id
        self._context.events.emit("job_active", f"{name}: its training has begun", job_id=job.job_id)

    def _tell_end(self, job_id: str) -> None:
        try:
            job = self._context.queue.find(job_id)
            verdict = job.verdict()
        except DropforgeError:
            return
        if job.lane in ENDED_LANES:
            text = f"{verdict['file']}: {verdict['message'] or job.lane}"
            facts = {"code": verdict["code"], "checkpoint": verdict["checkpoint"]}
            self._context.events.emit(f"job_{job.lane}", text, job_id=job_id, **facts)
        else:
            self._context.events.emit("job_requeued", f"{verdict['file']} waits again in {job.lane}", job_id=job_id)

    def _tell_commits(self) -> None:
        present = {checkpoint.id for checkpoint in self._view.committed}
        if self._told is None:
            self._told = present  # what an earlier daemon saw is no news
        for checkpoint in self._view.committed:
            if checkpoint.id not in self._told:
                loss = checkpoint.manifest.get("train_loss")
                self._context.events.emit(
                    "checkpoint", f"{checkpoint.id} is committed", checkpoint=checkpoint.id, loss=loss
                )
        self._told = present
