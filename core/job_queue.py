"""The directory queue between the daemon and the trainer (arrow: queue).

Reads    queue/{high,normal,low,active,done,failed,held}/<job_id>/     Writes  the same, by rename only
Format   one folder a job: the data under its own name, `<name>.meta.json`, `verdict.json`, `settings.json`, `tokens/`
Errors   StorageError (3xxx, retryable) on a failed rename; an empty queue is None, not an error
Effects  fsyncs the folders; never deletes     Used by put: daemon; claim, move: trainer (daemon when no trainer lives)
"""

import datetime
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # verdicts are JSON documents of config/schemas/verdict.schema.json

from core.atomic import read_json, rename_durable, write_json
from core.errors import DataError, NotFoundError
from core.paths import LANES, WAITING_LANES, Workspace

VERDICT_FILE = "verdict.json"
SETTINGS_FILE = "settings.json"
TOKENS_FOLDER = "tokens"
SIDECAR_SUFFIX = ".meta.json"
SET_ASIDE_SUFFIX = ".rejected.jsonl"
OUR_NAMES = {VERDICT_FILE, SETTINGS_FILE, TOKENS_FOLDER}
_JOB_ID = re.compile(r"\d{8}T\d{6}\d{6}Z-[0-9a-f]{6}")

_VERDICT_DEFAULTS: dict[str, Any] = {
    "schema": "verdict.v1",
    "job_id": None,
    "file": None,
    "sha256": None,
    "bytes": 0,
    "rows": 0,
    "rows_train": 0,
    "rows_held_out": 0,
    "rows_set_aside": 0,
    "rows_dropped": 0,
    "state": None,
    "code": "ok",
    "message": "",
    "line": None,
    "column": None,
    "field": None,
    "fix": None,
    "spec": None,
    "level": None,
    "issues": [],
    "tokens": {"total": 0, "trained": 0, "truncated_rows": 0, "p50": 0, "p95": 0, "max": 0},
    "received_at": None,
    "finished_at": None,
    "duplicate_of": None,
    "training": None,
    "effect": None,
    "checkpoint": None,
    "served": False,
}


def is_job_id(name: str) -> bool:
    """True for `YYYYMMDDTHHMMSSffffffZ-<6 hex>`."""
    return _JOB_ID.fullmatch(name) is not None


def new_job_id(last: str | None) -> str:
    """Make the next id, larger than `last` whatever the clock does.

    When the clock stands behind the last id, the id counts on from it by one microsecond.
    """
    now = datetime.datetime.now(datetime.UTC)
    if last is not None:
        now = max(now, _job_time(last) + datetime.timedelta(microseconds=1))
    return f"{now:%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(3)}"


def _job_time(job_id: str) -> datetime.datetime:
    return datetime.datetime.strptime(job_id.partition("-")[0], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=datetime.UTC)


def new_verdict(**known: Any) -> dict[str, Any]:  # JSON values
    """Every key of a verdict, the known ones filled in. Raises TypeError for a key the contract does not have."""
    unknown = known.keys() - _VERDICT_DEFAULTS.keys()
    if unknown:
        raise TypeError(f"a verdict has no {sorted(unknown)}")
    fresh = {key: value.copy() if isinstance(value, dict | list) else value for key, value in _VERDICT_DEFAULTS.items()}
    return fresh | known


@dataclass(frozen=True, slots=True)
class Job:
    """One dropped file and everything about it: a folder that moves from lane to lane."""

    job_id: str
    lane: str
    folder: Path

    @property
    def data_file(self) -> Path:
        """The dropped file under its own name.

        Raises:
            DataError: the folder holds no data file, or more than one.
        """
        return data_file_in(self.folder)

    @property
    def sidecar_file(self) -> Path:
        data = self.data_file
        return data.with_name(data.name + SIDECAR_SUFFIX)

    @property
    def settings_file(self) -> Path:
        return self.folder / SETTINGS_FILE

    @property
    def tokens_folder(self) -> Path:
        return self.folder / TOKENS_FOLDER

    def verdict(self) -> dict[str, Any]:
        """Read verdict.json. Raises StorageError or JsonError."""
        return read_json(self.folder / VERDICT_FILE)

    def write_verdict(self, verdict: dict[str, Any]) -> None:
        """Replace verdict.json durably."""
        write_json(self.folder / VERDICT_FILE, verdict)


def data_file_in(folder: Path) -> Path:
    """Find the one file in a claim or job folder that is not ours. Raises DataError."""
    found = [entry for entry in folder.iterdir() if _is_data(entry)]
    if len(found) != 1:
        raise DataError(
            f"expected one data file, found {len(found)}",
            where=str(folder),
            fix="move the extra files out of the job folder",
        )
    return found[0]


def _count(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(1 for entry in entries if is_job_id(entry.name))
    except FileNotFoundError:
        return 0


def _is_data(entry: Path) -> bool:
    name = entry.name
    ours = name in OUR_NAMES or name.startswith(".") or name.endswith((SIDECAR_SUFFIX, SET_ASIDE_SUFFIX))
    return not ours


class JobQueue:
    """The lanes of one root."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def jobs(self, lane: str) -> list[Job]:
        """The jobs of a lane, oldest first."""
        folder = self._workspace.lane(lane)
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if is_job_id(entry.name))
        except FileNotFoundError:
            return []
        return [Job(name, lane, folder / name) for name in names]

    def count(self, lane: str) -> int:
        """How many jobs stand in a lane, without reading them."""
        return _count(self._workspace.lane(lane))

    def count_rejected(self) -> int:
        """How many refused drops stand in inbox/rejected/, without reading them."""
        return _count(self._workspace.rejected_dir)

    def all_jobs(self) -> Iterator[Job]:
        for lane in LANES:
            yield from self.jobs(lane)

    def waiting(self) -> list[Job]:
        """What the trainer will take, in its order: high, normal, low; oldest first in each."""
        return [job for lane in WAITING_LANES for job in self.jobs(lane)]

    def active(self) -> Job | None:
        """The job being trained (the oldest, should a crash have left two)."""
        jobs = self.jobs("active")
        return jobs[0] if jobs else None

    def find(self, job_id: str) -> Job:
        """Look a job up in every lane.

        Raises:
            NotFoundError: no such job.
        """
        if is_job_id(job_id):
            for lane in LANES:
                folder = self._workspace.lane(lane) / job_id
                if folder.is_dir():
                    return Job(job_id, lane, folder)
        raise NotFoundError(f"no job {job_id!r} in queue/", fix="dropforge jobs lists them")

    def last_id(self) -> str | None:
        """The largest id ever issued that still has a folder, waiting claims and refused drops included."""
        folders = [self._workspace.lane(lane) for lane in LANES]
        folders += [self._workspace.claim_dir, self._workspace.rejected_dir]
        names = [name for folder in folders if folder.is_dir() for name in os.listdir(folder) if is_job_id(name)]
        return max(names, default=None)

    def put(self, folder: Path, lane: str) -> Job:
        """Take a complete claim folder into a lane with one rename. Raises StorageError."""
        target = self._workspace.lane(lane) / folder.name
        rename_durable(folder, target)
        return Job(folder.name, lane, target)

    def claim(self) -> Job | None:
        """Move the first waiting job to `active`; None when nothing waits."""
        for job in self.waiting():
            return self.move(job, "active")
        return None

    def move(self, job: Job, lane: str) -> Job:
        """Move a job to another lane with one rename. Raises StorageError."""
        return self.put(job.folder, lane)
