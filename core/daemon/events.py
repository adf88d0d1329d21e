"""What happened, one line each, for the monitor's event stream and the ledger (beside all arrows).

Writes   status/events.jsonl (by the daemon alone), kept once as events.1.jsonl when it grows past 64 MB
Format   {"seq", "time", "kind", "message", ...}; seq never goes back
Errors   none: an event that cannot be written is logged; it is a view, never the truth
"""

import json
import logging
import os
from pathlib import Path
from typing import Any  # facts of an event are JSON values

from core.paths import Workspace
from core.status import iso_now

logger = logging.getLogger(__name__)
_TROUBLE = frozenset(
    "config_refused deploy_failed disk_full inbox_unusable job_failed job_given_up job_held job_rejected judge_failed "
    "regressed report_failed trainer_died trainer_hung".split()
)

EVENTS_FILE = "events.jsonl"
_ROTATE_BYTES = 64_000_000
_TAIL_BYTES = 65_536


class EventLog:
    """Appends events."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.status_file(EVENTS_FILE)
        self._seq, self._torn = _last_seq(self._path)

    def emit(self, kind: str, message: str, **facts: Any) -> None:  # JSON values
        """Record one event and log it. Side effects: appends a line, without fsync."""
        self._seq += 1
        doc = {"seq": self._seq, "time": iso_now(), "kind": kind, "message": message, **facts}
        logger.log(logging.WARNING if kind in _TROUBLE else logging.INFO, "%s: %s", kind, message)
        line = json.dumps(doc, ensure_ascii=True, default=str).encode() + b"\n"
        try:
            self._rotate()
            with self._path.open("ab") as file:
                file.write(b"\n" + line if self._torn else line)
            self._torn = False
        except OSError as error:
            logger.warning("the event log cannot be written: %s", error.strerror)
            self._torn = True  # part of a line may stand there

    def _rotate(self) -> None:
        if self._path.exists() and self._path.stat().st_size > _ROTATE_BYTES:
            self._path.replace(self._path.with_name("events.1.jsonl"))


def _last_seq(path: Path) -> tuple[int, bool]:
    """The last sequence number written, and whether the file ends in the middle of a line (a crash)."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return 0, False
    for line in reversed(tail.split(b"\n")):
        try:
            return int(json.loads(line)["seq"]), not tail.endswith(b"\n")
        except (ValueError, KeyError, TypeError):
            continue
    return 0, bool(tail) and not tail.endswith(b"\n")
