"""Files that were let in are looked at longer while they train: starts the child, merges what it finds (arrow: queue).

Reads    status/audits/<job_id>.json
Writes   verdict.json of ended jobs: `audit`, and the warnings in `issues`. Until a job has ended its verdict is not the
         daemon's to write; who reads it meanwhile gets both from core.verdicts
Starts   `python -m core.daemon.audit_worker`, whenever a job waits for it and none runs
"""

import logging
from collections.abc import Callable

from core.daemon.children import Children
from core.daemon.context import Context
from core.errors import DropforgeError, NotFoundError
from core.job_queue import Job
from core.paths import ENDED_LANES, LANES
from core.verdicts import audit_of, with_audit

logger = logging.getLogger(__name__)

CHILD = "audits"
_LOOK_AGAIN_S = 1.0
_AFTER_FAILURE_S = 60.0


class Audits:
    """Remembers which jobs are done with; at the start it looks at all of them once."""

    def __init__(self, context: Context, children: Children, changed: Callable[[str], None]) -> None:
        self._context = context
        self._children = children
        self._changed = changed
        self._settled: set[str] = set()
        self._state: tuple[int, ...] = ()
        self._next_s = 0.0

    def tick(self, now: float) -> None:
        """Merge what is new, start the child when jobs wait for it."""
        if now < self._next_s:
            return
        self._next_s = now + _LOOK_AGAIN_S
        state = self._folders()
        if state == self._state:
            return
        wanting = [job for job in self._context.queue.all_jobs() if not self._merge(job)]
        if not wanting:
            self._state = state
        elif self._children.at_rest(CHILD):
            self._next_s = now + (_AFTER_FAILURE_S if self._failed() else _LOOK_AGAIN_S)
            self._children.run(CHILD, self._children.python("core.daemon.audit_worker"), now)

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

    def _merge(self, job: Job) -> bool:
        """Returns False when the job has no audit yet. Until it has ended, its verdict is not ours to write."""
        if job.lane not in ENDED_LANES:
            self._settled.discard(job.job_id)
        elif job.job_id in self._settled:
            return True
        audit = audit_of(self._context.workspace, job.job_id)
        if audit is None or job.lane not in ENDED_LANES:
            return audit is not None
        try:
            verdict = job.verdict()
            merged = with_audit(verdict, audit)
            if merged != verdict:
                job.write_verdict(merged)
                self._changed(job.job_id)
            self._settled.add(job.job_id)
        except NotFoundError:
            pass
        except DropforgeError as error:
            logger.warning("the audit of %s was not merged: %s", job.job_id, error)
        return True
