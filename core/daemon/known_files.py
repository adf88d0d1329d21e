"""Which bytes have been dropped before: the duplicate check by SHA-256 (arrow: intake).

Reads    the verdicts of waiting, active and done jobs, once at the start
Errors   none: a verdict that cannot be read does not count
"""

from typing import Any  # verdicts are JSON documents

from core.errors import DropforgeError, NotFoundError
from core.job_queue import JobQueue
from core.paths import WAITING_LANES

_COUNTING = (*WAITING_LANES, "active", "done")


class KnownFiles:
    """sha256 -> job_id of the first job with these bytes that is queued, active or done."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._by_sum: dict[str, str] = {}
        for lane in _COUNTING:
            for job in queue.jobs(lane):
                try:
                    self.add(job.job_id, job.verdict())
                except DropforgeError:
                    continue

    def add(self, job_id: str, verdict: dict[str, Any]) -> None:
        """Count a job that was accepted; a duplicate of another never counts itself."""
        digest = verdict.get("sha256")
        if isinstance(digest, str) and verdict.get("duplicate_of") is None:
            known = self._by_sum.get(digest)
            if known is None or not self._counts(known):
                self._by_sum[digest] = job_id

    def first(self, sha256: str | None, but: str) -> str | None:
        """The job, other than `but`, that these bytes duplicate; None when there is none any more."""
        known = self._by_sum.get(sha256) if sha256 else None
        return known if known is not None and known != but and self._counts(known) else None

    def _counts(self, job_id: str) -> bool:
        try:
            return self._queue.find(job_id).lane in _COUNTING
        except NotFoundError:
            return False
