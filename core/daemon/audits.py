"""Files that were let in are looked at longer while they train: starts the child, merges what it finds (arrow: queue).

Reads    status/audits/<job_id>.json
Writes   verdict.json of ended jobs: `audit`, and the warnings in `issues`. Until a job has ended its verdict is not the
         daemon's to write; who reads it meanwhile gets both from core.verdicts
Starts   `python -m core.daemon.audit_worker`, whenever a job waits for it and none runs
"""

import logging
import time
from collections.abc import Callable

from core.daemon.children import Children
from core.daemon.context import Context
from core.errors import DropforgeError
from core.job_queue import Job
from core.paths import ENDED_LANES, LANES
from core.verdicts import audit_file, audit_of, audited_jobs, with_audit

logger = logging.getLogger(__name__)

CHILD = "audits"
_LOOK_AGAIN_S = 1.0
_AFTER_FAILURE_S = 60.0
_SLICE_S = 0.1  # how long one turn may merge
_LOOK_SHARE = 20.0  # looking takes a twentieth of the time at most, however many jobs there are


class Audits:
    """Remembers which jobs are done with; at the start it looks at all of them once."""

    def __init__(self, context: Context, children: Children, changed: Callable[[str], None]) -> None:
        self._context = context
        self._children = children
        self._changed = changed
        self._settled: set[str] = set()
        self._pending: list[Job] = []
        self._state: tuple[int, ...] = ()
        self._next_s = 0.0

    def tick(self, now: float) -> None:
        """Merge what is new, a little at a time; start the child when jobs wait for it."""
        deadline = time.monotonic() + _SLICE_S
        while self._pending and time.monotonic() < deadline:
            self._merge(self._pending.pop())
        if now < self._next_s or self._pending:
            return
        began = time.monotonic()
        state = self._folders()
        if state != self._state and not self._look(now):
            self._state = state
        self._next_s = max(self._next_s, now + max(_LOOK_AGAIN_S, _LOOK_SHARE * (time.monotonic() - began)))

    def _look(self, now: float) -> bool:
        """Find what has been audited; returns True while a job has not."""
        audited = audited_jobs(self._context.workspace)
        jobs = list(self._context.queue.all_jobs())
        self._settled -= {job.job_id for job in jobs if job.lane not in ENDED_LANES}
        done = [job for job in jobs if job.lane in ENDED_LANES and job.job_id in audited]
        self._pending = [job for job in done if job.job_id not in self._settled]
        missing = any(job.job_id not in audited for job in jobs)
        if missing and self._children.at_rest(CHILD):
            self._next_s = now + (_AFTER_FAILURE_S if self._failed() else _LOOK_AGAIN_S)
            self._children.run(CHILD, self._children.python("core.daemon.audit_worker"), now)
        return missing

    def stop(self, now: float) -> None:
        """The daemon ends; what is missing is made up for at the next start."""
        self._children.stop(CHILD, now)

    def _folders(self) -> tuple[int, ...]:
        """Changes when a job comes or moves, or an audit is written."""
        workspace = self._context.workspace
        folders = [*(workspace.lane(lane) for lane in LANES), workspace.audits_dir]
        return tuple(folder.stat().st_mtime_ns if folder.is_dir() else 0 for folder in folders)

    def _failed(self) -> bool:
        ended = self._children[CHILD].last_exit if self._children.known(CHILD) else None
        return ended is not None and ended.returncode != 0

    def _merge(self, job: Job) -> None:
        """Add an audit to the verdict of an ended job. A damaged one is removed, so that it is made again."""
        audit = audit_of(self._context.workspace, job.job_id)
        try:
            if audit is None:
                audit_file(self._context.workspace, job.job_id).unlink(missing_ok=True)
                return
            verdict = job.verdict()
            merged = with_audit(verdict, audit)
            if merged != verdict:
                job.write_verdict(merged)
                self._changed(job.job_id)
            self._settled.add(job.job_id)
        except (DropforgeError, OSError) as error:  # it moved on, or the disk refuses: looked for again
            self._state = ()
            logger.warning("the audit of %s was not merged: %s", job.job_id, error)
