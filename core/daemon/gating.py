"""Running the gates over claims, one after the other, and reading their answers (arrow: intake, spec and content gate).

Errors   a gate that raises refuses the file (never fails open), except when the machine lacked something: then it waits
Units    seconds by a monotonic clock
Effects  one worker process; a file on which it dies twice is refused
"""

import errno
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # a verdict is JSON

from core.daemon.background_worker import BackgroundWorker, Finished, GateRequest, WorkerDiedError
from core.daemon.claims import Claim
from core.errors import DropforgeError, ResourceError
from core.job_queue import new_verdict
from core.settings import Settings

logger = logging.getLogger(__name__)

_IN_FLIGHT = 3  # one in work, two behind it, so that the worker never waits for the loop
_DEATHS_ALLOWED = 2
_HANG_S = 300.0
_SLOWEST_BYTES_PER_S = 200_000.0  # a tenth of the slowest pass over a file that was measured
_RETRY_BASE_S = 1.0
_RETRY_MAX_S = 30.0
_OF_THE_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EACCES,
    errno.EPERM,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A gate's answer, or the reason why it is asked again later."""

    claim: Claim
    verdict: dict[str, Any]
    lane: str


class Gating:
    """Claims on their way through the worker."""

    def __init__(self, root: Path, worker: BackgroundWorker) -> None:
        self._root = root
        self._worker = worker
        self._waiting: dict[str, Claim] = {}
        self._in_work: dict[str, Claim] = {}
        self._not_before: dict[str, float] = {}
        self._attempts: Counter[str] = Counter()
        self._deaths: Counter[str] = Counter()
        self._head: str | None = None
        self._head_since_s = 0.0
        self.trouble: str | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_work)

    def add(self, claim: Claim, not_before_s: float = 0.0) -> None:
        """Put a claim in line."""
        self._waiting[claim.job_id] = claim
        self._not_before[claim.job_id] = not_before_s

    def take_out(self, job_id: str) -> Claim | None:
        """Remove a claim that is still in line; None when it is in work."""
        return self._waiting.pop(job_id, None)

    @property
    def job_ids(self) -> set[str]:
        return {*self._waiting, *self._in_work}

    def collect(self, now: float, settings: Settings) -> list[Answer]:
        """The answers that have come since the last call."""
        return self._read(self._worker.collect(), now, settings)

    def feed(self, now: float, settings: Settings) -> None:
        """Keep the worker busy. Raises OSError when it cannot be started; nothing is lost then."""
        self._watch_head(now)
        for job_id, claim in list(self._waiting.items()):
            if len(self._worker) >= _IN_FLIGHT:
                break
            if self._not_before[job_id] <= now:
                self._worker.submit(job_id, GateRequest(claim.folder, self._root, job_id, claim.lane, settings))
                self._in_work[job_id] = self._waiting.pop(job_id)

    def _watch_head(self, now: float) -> None:
        """Kill the worker when the task it has in hand takes beyond all reason (the oldest one: they run in order)."""
        head = next(iter(self._in_work), None)
        if head != self._head:
            self._head, self._head_since_s = head, now
        elif head is not None and now - self._head_since_s > _limit_s(self._in_work[head].data):
            logger.error("checking %s takes longer than any file should: its process is killed", head)
            self._head = None
            self._worker.kill()

    def _read(self, finished: list[Finished], now: float, settings: Settings) -> list[Answer]:
        answers = []
        suspect = True  # the first task that broke was the one in work; those behind it are innocent
        for item in finished:
            claim = self._in_work.pop(item.key)
            if isinstance(item.error, WorkerDiedError):
                answer = self._after_death(claim, suspect, now, settings)
                suspect = False
            elif item.error is not None:
                answer = self._after_error(claim, item.error, now, settings)
            else:
                answer = Answer(claim, dict(item.result.verdict), item.result.lane) if item.result else None
            if answer is not None:
                self._forget(claim.job_id)
                answers.append(answer)
        return answers

    def _after_death(self, claim: Claim, suspect: bool, now: float, settings: Settings) -> Answer | None:
        self._deaths[claim.job_id] += suspect
        if self._deaths[claim.job_id] < _DEATHS_ALLOWED:
            self.add(claim, now)
            return None
        message = "the process that checks files ended twice on this one (killed, crashed or out of memory)"
        return _refused(claim, settings, "crashed", message, "split the file; dropforge check FILE shows where it dies")

    def _after_error(self, claim: Claim, error: Exception, now: float, settings: Settings) -> Answer | None:
        number = _errno(error)
        if number == errno.EIO:
            message = f"the disk failed while the file was read: {error}"
            return _refused(claim, settings, "read_error", message, "copy the file again; check the disk", "held")
        if number in _OF_THE_MACHINE or isinstance(error, MemoryError | ResourceError):
            self._again_later(claim, error, now)
            return None
        logger.error("the gate raised on %s, so the file is refused", claim.job_id, exc_info=error)
        said = error.message if isinstance(error, DropforgeError) else f"{type(error).__name__}"
        fix = error.fix if isinstance(error, DropforgeError) and error.fix else "dropforge logs daemon; report this"
        code = error.slug if isinstance(error, DropforgeError) else "gate_error"
        return _refused(claim, settings, code, f"the file could not be checked: {said}", fix)

    def _again_later(self, claim: Claim, error: Exception, now: float) -> None:
        self._attempts[claim.job_id] += 1
        delay = min(_RETRY_MAX_S, _RETRY_BASE_S * 2.0 ** (self._attempts[claim.job_id] - 1))
        self.trouble = str(error) or type(error).__name__
        logger.warning("%s is checked again in %.0f s: %s", claim.job_id, delay, self.trouble)
        self.add(claim, now + delay)

    def _forget(self, job_id: str) -> None:
        self._attempts.pop(job_id, None)
        self._deaths.pop(job_id, None)
        self._not_before.pop(job_id, None)
        if not self._attempts:
            self.trouble = None


def _limit_s(data: Path) -> float:
    """How long the gates may take over a file, in seconds."""
    try:
        return _HANG_S + data.stat().st_size / _SLOWEST_BYTES_PER_S
    except OSError:
        return _HANG_S


def _errno(error: Exception) -> int | None:
    for candidate in (error, error.__cause__):
        if isinstance(candidate, OSError):
            return candidate.errno
    return None


def _refused(claim: Claim, settings: Settings, code: str, message: str, fix: str, state: str = "rejected") -> Answer:
    verdict = new_verdict(
        job_id=claim.job_id, state=state, code=code, message=message, fix=fix, level=settings.validation.level
    )
    return Answer(claim, verdict, claim.lane)
