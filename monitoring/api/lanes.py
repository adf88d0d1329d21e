"""Job folders as the monitor sees them: bounded work per look, however many jobs have ended (arrow: queue).

Reads    queue/<lane>/<job_id>/verdict.json, inbox/rejected/<job_id>/verdict.json, inbox/.claim/, status/audits/
Errors   none on purpose: a job that moves away while it is read is simply looked for again next time
Units    times in nanoseconds as the file system gives them
"""

import bisect
import heapq
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from core.atomic import read_json
from core.errors import JsonError, StorageError
from core.job_queue import VERDICT_FILE, is_job_id, new_verdict
from core.paths import LANES, WAITING_LANES, Workspace
from core.verdicts import audit_of, brief, with_audit
from monitoring.api.query import Document

REJECTED = "rejected"
CHECKING = "checking"  # claimed, still in the gates
SHOWN_LANES = (CHECKING, *LANES, REJECTED)
_KEPT_VERDICTS = 4000
_RACY_NS = 100_000_000  # a listing made within 0.1 s of a change may miss a later change in the same clock tick


class Lanes:
    """Names by lane, kept until the folder changes; verdicts, kept until the file changes. Safe to share by threads."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._folders = {lane: workspace.lane(lane) for lane in LANES}
        self._folders |= {REJECTED: workspace.rejected_dir, CHECKING: workspace.claim_dir}
        self._listings: dict[str, tuple[int, list[str]]] = {}
        self._verdicts: OrderedDict[Path, tuple[tuple[int, int, int], Document]] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, lane: str) -> list[str]:
        """The job ids in a lane, oldest first."""
        folder = self._folders[lane]
        try:
            changed_ns = folder.stat().st_mtime_ns
            kept = self._listings.get(lane)
            if kept and kept[0] == changed_ns:
                return kept[1]
            names = sorted(name for name in os.listdir(folder) if is_job_id(name))
        except OSError:
            return []
        if time.time_ns() - changed_ns > _RACY_NS:
            self._listings[lane] = (changed_ns, names)
        return names

    def counts(self) -> dict[str, int]:
        """How many jobs stand in each lane, those in the gates and refused drops included."""
        return {lane: len(self.names(lane)) for lane in SHOWN_LANES}

    def newest_first(self, lanes: tuple[str, ...], before: str) -> Iterator[tuple[str, str]]:
        """(job id, lane) of the jobs in `lanes`, newest drop first; only ids below `before` unless it is ''.

        Lazy: a page of 40 costs 40 steps, not one for each of 100,000 jobs.
        """
        return heapq.merge(*(self._down(lane, before) for lane in lanes), reverse=True)

    def _down(self, lane: str, before: str) -> Iterator[tuple[str, str]]:
        names = self.names(lane)
        end = bisect.bisect_left(names, before) if before else len(names)
        return ((names[at], lane) for at in range(end - 1, -1, -1))

    def find(self, job_id: str) -> str | None:
        """The lane a job stands in, or None. Asks the disk, never a kept listing."""
        if is_job_id(job_id):
            for lane in SHOWN_LANES:
                if (self._folders[lane] / job_id).is_dir():
                    return lane
        return None

    def verdicts(self, jobs: list[tuple[str, str]]) -> Iterator[Document]:
        """The verdicts of the named jobs; those that moved away meanwhile are left out."""
        for job_id, lane in jobs:
            verdict = self.verdict(job_id, lane)
            if verdict is not None:
                yield verdict

    def verdict(self, job_id: str, lane: str) -> Document | None:
        """One verdict; its lane is the truth for a job that waits or runs. None when it is gone."""
        path = self._folders[lane] / job_id / VERDICT_FILE
        try:
            stat = path.stat()
        except OSError:
            return self._unreadable(job_id, lane) if path.parent.is_dir() else None
        key = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        with self._lock:
            kept = self._verdicts.get(path)
            if kept and kept[0] == key:
                self._verdicts.move_to_end(path)
                return kept[1]
        try:
            verdict = read_json(path)
        except (JsonError, StorageError):
            return self._unreadable(job_id, lane) if path.parent.is_dir() else None
        verdict = brief(verdict)
        verdict["state"] = _state(lane, verdict.get("state"))
        with self._lock:
            self._verdicts[path] = (key, verdict)
            while len(self._verdicts) > _KEPT_VERDICTS:
                self._verdicts.popitem(last=False)
        return verdict

    def whole(self, job_id: str, lane: str) -> Document | None:
        """One verdict with the rows it shows and with what was found out since it was let in."""
        verdict = self.verdict(job_id, lane)
        if verdict is None:
            return None
        try:
            mask = read_json(self._folders[lane] / job_id / VERDICT_FILE).get("mask")
        except (JsonError, StorageError):
            mask = None
        audit = audit_of(self._workspace, job_id)
        verdict = verdict if audit is None else with_audit(verdict, audit)
        return verdict if mask is None else {**verdict, "mask": mask}

    def sidecar(self, job_id: str, lane: str) -> Document | None:
        """The job's `.meta.json` with what the daemon added, or None."""
        folder = self._folders[lane] / job_id
        try:
            found = next((name for name in os.listdir(folder) if name.endswith(".meta.json")), None)
            return read_json(folder / found) if found else None
        except (OSError, JsonError, StorageError):
            return None

    def _unreadable(self, job_id: str, lane: str) -> Document:
        message = "verdict.json cannot be read"
        return new_verdict(job_id=job_id, state=_state(lane, lane), code="unreadable", message=message)


def _state(lane: str, written: str | None) -> str:
    if lane in WAITING_LANES or lane == CHECKING:
        return "queued"
    return "active" if lane == "active" else written if written in SHOWN_LANES else lane
