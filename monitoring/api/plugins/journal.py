"""The last lines of the daemon's event log (beside all arrows).

Reads    the end of status/events.jsonl
"""

from core.atomic import parse_json
from core.errors import JsonError
from core.paths import Workspace
from monitoring.api.query import Document, Query

_TAIL_BYTES = 64 * 1024


class JournalPlugin:
    """/api/journal: what happened last, oldest first; /api/events streams the same lines as they are written."""

    name = "journal"
    parameters = ("newest",)

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.status_file("events.jsonl")

    def read(self, query: Query) -> Document:
        """{"events": [line of the log]}, at most `newest` (default 30) and what the last 64 KB hold."""
        newest = query.integer("newest", 30, 1, 500)
        try:
            with self._path.open("rb") as file:
                start = max(0, file.seek(0, 2) - _TAIL_BYTES)
                file.seek(start)
                lines = file.read().split(b"\n")
        except OSError:
            return {"events": []}
        whole = lines[1 if start else 0 : -1]
        events = [event for line in whole if (event := _event(line)) is not None]
        return {"events": events[-(newest or 1) :]}


def _event(line: bytes) -> Document | None:
    try:
        event = parse_json(line, "event")
    except JsonError:
        return None
    return event if isinstance(event, dict) else None
