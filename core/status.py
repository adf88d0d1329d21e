"""What processes say: status/*.json, each with one writer, always replaced whole; read by the monitor and the CLI.

Writes   status/<name>.json by rename, without fsync: a view, never the truth
Units    times in UTC, ISO 8601 with Z
"""

import datetime
from pathlib import Path
from typing import Any  # a status document has any shape; schemas decide

from core.atomic import read_json, write_json
from core.errors import JsonError, StorageError

STALE_AFTER_S = 30.0  # three times the slowest heartbeat (10 s)


def iso_now() -> str:
    """The time now in UTC, to the microsecond, e.g. 2026-11-22T01:34:52.000000Z."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def age_s(stamp: str | None) -> float | None:
    """Seconds since an ISO time of ours, or None when there is none or it cannot be read."""
    if not stamp:
        return None
    try:
        then = datetime.datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return (datetime.datetime.now(datetime.UTC) - then).total_seconds()


def write_status(path: Path, doc: dict[str, Any]) -> None:  # any JSON object
    """Replace a status file. Raises StorageError when the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, doc, durable=False)


def read_status(path: Path) -> dict[str, Any] | None:  # any JSON object
    """Read a status file; None when it is not there yet or is damaged (its writer replaces it soon)."""
    try:
        return read_json(path)
    except (StorageError, JsonError):
        return None
