"""Sidecars without their data file: joined to a claim, added to a queued job as lineage, or left (arrow: intake).

Reads    NAME.meta.json in the inbox, at most 1 MB
Writes   NAME.meta.json in a waiting job's folder: the lineage fields only, since its rows were already accepted
Errors   none: a sidecar nobody can use stays in the inbox, listed with the reason; after 24 h it goes to rejected/
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # a sidecar is JSON

from core.atomic import rename_durable, write_json
from core.daemon.candidates import Candidate, Settler, signature
from core.daemon.claims import Claim, ClaimDesk, has_producer_part
from core.daemon.context import Context
from core.job_queue import SIDECAR_SUFFIX, Job, new_verdict
from core.lineage import SidecarError, read_sidecar
from core.paths import display_name
from core.status import iso_now, read_status

logger = logging.getLogger(__name__)

ORPHAN_AFTER_S = 24 * 3600.0
_LOOK_AGAIN_S = 10.0
# What says where the data is from, and nothing about how its rows are read.
LINEAGE_FIELDS = ("generator_id", "generator_version", "generated_at", "source", "params", "extra")


class LateSidecars:
    """Remembers since when each lone sidecar lies in the inbox."""

    def __init__(self, context: Context, desk: ClaimDesk) -> None:
        self._context = context
        self._desk = desk
        self._settler = Settler()
        self._first_seen: dict[Path, float] = {}
        self._next_look: dict[Path, float] = {}
        self.joined: set[str] = set()

    @property
    def next_due_s(self) -> float | None:
        """When a sidecar will have settled."""
        return self._settler.next_due_s

    def tick(self, lone: list[Path], now: float, wanted: Mapping[str, Claim]) -> list[tuple[Path, str]]:
        """Use what has settled.

        Args:
            wanted: claims that wait for their sidecar, by the sidecar's name.

        Returns those that stay, with the reason. Side effects: `joined` gets the ids of claims that have theirs now.
        """
        self._first_seen = {path: self._first_seen.get(path, now) for path in lone}
        self._next_look = {path: self._next_look.get(path, now) for path in lone}
        settled = self._settler.settled(_as_candidates(lone), self._context.settings.inbox.settle_s, now)
        reasons = {path: "a sidecar whose data file is not here (yet)" for path in lone}
        for candidate in settled:
            path = candidate.path
            if path.name in wanted:
                self._desk.join_sidecar(wanted[path.name], path)
                self.joined.add(wanted[path.name].job_id)
                reasons.pop(path)
            elif now >= self._next_look[path]:
                self._next_look[path] = now + _LOOK_AGAIN_S
                reason = self._add_to_job(path, now)
                if reason is None:
                    reasons.pop(path)
                else:
                    reasons[path] = reason
        return list(reasons.items())

    def _add_to_job(self, path: Path, now: float) -> str | None:
        """Returns None when the sidecar was used up, else why it stays."""
        job = self._job_without_sidecar(path.name)
        if job is None:
            return self._orphan(path, now)
        try:
            doc = read_sidecar(path).doc
        except (OSError, SidecarError) as error:
            return f"a sidecar that cannot be used: {error}"
        lineage: dict[str, Any] = {key: doc[key] for key in LINEAGE_FIELDS if key in doc}
        write_json(job.folder / path.name, (read_status(job.folder / path.name) or {}) | lineage)
        path.unlink()
        self._context.events.emit(
            "sidecar_late", f"{display_name(path.name)} came after the claim: lineage only", job_id=job.job_id
        )
        return None

    def _job_without_sidecar(self, sidecar_name: str) -> Job | None:
        name = sidecar_name.removesuffix(SIDECAR_SUFFIX)
        for job in reversed(self._context.queue.waiting()):
            if os.path.lexists(job.folder / name) and not has_producer_part(job.folder / sidecar_name):
                return job
        return None

    def _orphan(self, path: Path, now: float) -> str | None:
        if now - self._first_seen[path] < ORPHAN_AFTER_S:
            return "a sidecar whose data file is not here (yet)"
        job_id = self._desk.issue_id()
        folder = self._context.workspace.rejected_dir / job_id
        folder.mkdir(parents=True)
        verdict = new_verdict(
            job_id=job_id,
            file=display_name(path.name),
            state="rejected",
            code="orphan_sidecar",
            message="no data file came for this sidecar within 24 hours",
            fix="drop both again, the sidecar first",
            received_at=iso_now(),
            finished_at=iso_now(),
        )
        write_json(folder / "verdict.json", verdict)
        rename_durable(path, folder / path.name)
        self._context.events.emit("job_rejected", f"{display_name(path.name)}: {verdict['message']}", job_id=job_id)
        return None


def _as_candidates(paths: list[Path]) -> list[Candidate]:
    found = []
    for path in paths:
        try:
            found.append(Candidate(path, "normal", signature(os.lstat(path)), None))
        except OSError:  # it went away, or its data file has come
            continue
    return found
