"""From the drop to the queue: scan, settle, claim, gates, home (arrow: inbox -> intake -> queue).

Reads    inbox/                       Writes  inbox/.claim/, queue/<lane>/, inbox/rejected/ by rename
Units    seconds by a monotonic clock
Errors   none leave `tick`: a disk that refuses is a reason to stand still, shown in status, and heals by itself
"""

import logging
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any  # verdicts are JSON documents

from core.daemon import candidates
from core.daemon.candidates import Candidate, Settler
from core.daemon.claims import Claim, ClaimDesk, has_producer_part
from core.daemon.context import Context
from core.daemon.gating import Answer, Gating
from core.daemon.known_files import KnownFiles
from core.daemon.late_sidecars import LateSidecars
from core.errors import StorageError, UsageError
from core.job_queue import SIDECAR_SUFFIX, Job
from core.paths import display_name
from core.status import iso_now

logger = logging.getLogger(__name__)

RESCAN_S = 10.0
_RESCAN_UNWATCHED_S = 1.0
_CLAIM_SLICE_S = 0.25  # how long one tick may claim before the rest of the loop has its turn
_SCAN_SHARE = 5.0  # at most a fifth of the time goes into scanning, however many files wait


class Intake:
    """Owns every file between the inbox and the queue."""

    def __init__(
        self, context: Context, desk: ClaimDesk, gating: Gating, suffixes: Collection[str], clock: Callable[[], float]
    ) -> None:
        self._context = context
        self._desk = desk
        self._gating = gating
        self._suffixes = suffixes
        self._clock = clock
        self._settler = Settler()
        self._known = KnownFiles(context.queue)
        self._late = LateSidecars(context, desk)
        self._without_sidecar: dict[str, tuple[Answer, float]] = {}
        self._writers: dict[str, Claim] = {}
        self._ready: Iterator[Candidate] = iter(())
        self._answers: list[Answer] = []
        self._next_scan_s = 0.0
        self._earliest_s = 0.0
        self._recover_at_s: float | None = 0.0
        self._seen = 0
        self.ignored: list[dict[str, str]] = []

    @property
    def idle(self) -> bool:
        """No candidate in the inbox, no claim without a home."""
        return not (self._seen or self.open_claims or self._recover_at_s is not None)

    @property
    def open_claims(self) -> int:
        return len(self._gating) + len(self._without_sidecar) + len(self._writers) + len(self._answers)

    @property
    def candidates(self) -> int:
        """How many files stood in the inbox at the last scan."""
        return self._seen

    @property
    def waiting(self) -> list[dict[str, str]]:
        """Files taken out of the inbox that wait for somebody else: what each waits for, since when it is ours."""
        sidecars = [
            (answer.claim, f"its sidecar {_name(answer.claim)}{SIDECAR_SUFFIX}")
            for answer, _ in self._without_sidecar.values()
        ]
        writers = [(claim, "whoever has it open to close it") for claim in self._writers.values()]
        return [
            {"file": _name(c), "job_id": c.job_id, "for": what, "since": c.received_at}
            for c, what in sidecars + writers
        ]

    def wake(self) -> None:
        """Something moved in the inbox: scan at the next tick (unless one scan costs too much for that)."""
        self._next_scan_s = min(self._next_scan_s, self._earliest_s)

    def tick(self, now: float, *, watching: bool = True, taking: bool = True) -> None:
        """One turn. `taking` False (stopping, or blocked) lets what was claimed end but claims nothing new."""
        blocks = self._context.blocks.intake
        try:
            self._recover(now)
            self._answers += self._gating.collect(now, self._context.settings)
            self._place(now)
            self._look_at_claims(now)
            if taking and not blocks.keys() - {"intake", "gates"}:
                self._claim(now, watching)
            self._gating.feed(now, self._context.settings)
            blocks.pop("intake", None)
        except (StorageError, OSError) as error:
            blocks["intake"] = f"the inbox stands still: {error}"
            logger.warning("%s", blocks["intake"])
            self._recover_at_s = now + 1.0
        if self._gating.trouble:
            blocks["gates"] = f"files wait to be checked: {self._gating.trouble}"
        else:
            blocks.pop("gates", None)

    def cancel(self, job_id: str) -> bool:
        """Take a claim out of the line and send it to failed/. False when there is none.

        Raises:
            UsageError: the worker has it in hand.
        """
        kept = self._without_sidecar.pop(job_id, None)
        claim = kept[0].claim if kept else self._writers.pop(job_id, None) or self._gating.take_out(job_id)
        if claim is None and job_id in self._gating.job_ids:
            raise UsageError(f"job {job_id} is being checked at this moment", fix="ask again in a few seconds")
        if claim is None:
            return False
        self._desk.cancel(claim)
        return True

    def take_back(self, job: Job) -> None:
        """Retry an ended job: it goes through the gates again."""
        self._gating.add(self._desk.back_to_claim(job))

    def _recover(self, now: float) -> None:
        if self._recover_at_s is None or now < self._recover_at_s:
            return
        answered = {answer.claim.job_id for answer in self._answers}
        for claim in self._desk.recover(answered | self._gating.job_ids | {*self._without_sidecar, *self._writers}):
            self._context.events.emit("claim_recovered", f"picked up again: {_name(claim)}", job_id=claim.job_id)
            self._gate_when_closed(claim)
        self._recover_at_s = None

    # --- from the inbox into .claim -------------------------------------------------------------------------------

    def _claim(self, now: float, watching: bool) -> None:
        deadline = self._clock() + _CLAIM_SLICE_S
        if now >= self._next_scan_s:
            self._scan(now, watching)
        for candidate in self._ready:
            claim = self._desk.take(candidate)
            if claim is not None:
                logger.info("claimed %s as %s", _name(claim), claim.job_id)
                self._gate_when_closed(claim)
            if self._clock() >= deadline:
                self._context.wakeup.set()
                return

    def _scan(self, now: float, watching: bool) -> None:
        began = self._clock()
        workspace, settings = self._context.workspace, self._context.settings
        found = candidates.scan(workspace, self._suffixes)
        ready = self._settler.settled(found.candidates, settings.inbox.settle_s, now)
        self._ready = iter(ready)
        denied = [item for item in self._settler.waiting if item[1].startswith("permission denied")]
        kept = self._late.tick(found.lone_sidecars, now, self._waiting_for_sidecar())
        self._seen = len(found.candidates) - len(denied)
        self.ignored = candidates.describe([*found.ignored, *self._settler.waiting, *kept], workspace)
        pause = RESCAN_S if watching else _RESCAN_UNWATCHED_S
        due = now + (0.0 if ready else pause)
        for settling in (self._settler.next_due_s, self._late.next_due_s):
            due = due if settling is None else min(due, settling)
        self._earliest_s = now + (self._clock() - began) * _SCAN_SHARE
        self._next_scan_s = max(due, self._earliest_s)

    @property
    def next_due_s(self) -> float:
        """When the next scan wants to happen, by the daemon's clock."""
        return self._next_scan_s

    def _waiting_for_sidecar(self) -> dict[str, Claim]:
        waiting = [answer.claim for answer, _ in self._without_sidecar.values()]
        return {claim.sidecar.name: claim for claim in waiting}

    def _gate_when_closed(self, claim: Claim) -> None:
        """A writer that opened the file just before the claim keeps writing into ours: wait until it closes."""
        if candidates.probe(claim.data) == "still open for writing":
            self._writers[claim.job_id] = claim
        else:
            self._gating.add(claim)

    def _look_at_claims(self, now: float) -> None:
        for job_id, claim in list(self._writers.items()):
            if candidates.probe(claim.data) is None:
                del self._writers[job_id]
                self._gating.add(claim)
        for job_id, (answer, until_s) in list(self._without_sidecar.items()):
            if job_id in self._late.joined:
                self._late.joined.discard(job_id)
                del self._without_sidecar[job_id]
                self._gating.add(answer.claim)
            elif now >= until_s:
                del self._without_sidecar[job_id]
                self._finish(answer)

    # --- from .claim to a home ------------------------------------------------------------------------------------

    def _place(self, now: float) -> None:
        """Send home what the gates have answered; an answer whose move fails stays first in line."""
        while self._answers:
            answer = self._answers[0]
            if _wants_sidecar(answer):
                wait_s = self._context.settings.inbox.sidecar_wait_s
                self._without_sidecar[answer.claim.job_id] = (answer, now + wait_s)
            else:
                self._finish(answer)
            self._answers.pop(0)

    def _finish(self, answer: Answer) -> None:
        claim, verdict = answer.claim, self._complete(answer)
        if not claim.folder.exists():  # the last rename was made, only its fsync failed
            return
        incoming = self._context.workspace.incoming_dir(self._context.run)
        home = self._desk.place(claim, verdict, answer.lane, incoming)
        if home != "rejected":
            self._known.add(claim.job_id, verdict)
        facts: dict[str, Any] = {"job_id": claim.job_id, "file": verdict["file"], "code": verdict["code"], "home": home}
        text = verdict["message"] or f"{verdict['rows']} rows"
        self._context.events.emit(f"job_{verdict['state']}", f"{verdict['file']}: {text}", **facts)

    def _complete(self, answer: Answer) -> dict[str, Any]:
        """Fill in what the daemon knows: id, name, times, and whether these bytes were here before."""
        claim, verdict = answer.claim, answer.verdict
        verdict |= {"job_id": claim.job_id, "file": _name(claim), "received_at": claim.received_at}
        verdict["run"] = self._context.run
        if verdict["state"] == "queued" and not self._context.settings.inbox.allow_duplicates:
            first = self._known.first(verdict.get("sha256"), claim.job_id)
            if first is not None:
                verdict |= {"state": "done", "code": "duplicate", "duplicate_of": first}
                verdict["message"] = f"these bytes were dropped before as {first}: not trained again"
                verdict["fix"] = "set inbox.allow_duplicates to train a file twice"
        if verdict["state"] != "queued":
            verdict["finished_at"] = iso_now()
        if not verdict["bytes"]:
            verdict["bytes"] = _size(claim.data)
        return verdict


def _wants_sidecar(answer: Answer) -> bool:
    return answer.verdict.get("code") == "spec_unknown" and not has_producer_part(answer.claim.sidecar)


def _name(claim: Claim) -> str:
    return display_name(claim.data.name)


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
