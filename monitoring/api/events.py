"""The daemon's event log as a stream of server-sent events (beside all arrows).

Reads    status/events.jsonl, from its end or from where `Last-Event-ID` says; modification times of what the page shows
Format   `id: <inode>-<offset>`, `event: event` with one JSON line of the log, or `event: changed` with the subjects
         that have news; a comment every few seconds keeps the connection and finds clients that left
Units    seconds, bytes          Errors  OverloadedError (503) above the cap, so that streams never starve /health
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from core.atomic import parse_json
from core.errors import JsonError, OverloadedError
from core.paths import LANES, Workspace

MAX_STREAMS = 24
_LOOK_EVERY_S = 0.25
_BEAT_EVERY_S = 10.0
_MAX_READ_BYTES = 64 * 1024  # of the log in one look; the rest comes with the next
_BACKLOG_BYTES = 16 * 1024  # what a new reader is told of the past
_EVENT_ID = re.compile(r"(\d{1,20})-(\d{1,18})", re.ASCII)


class EventLog:
    """Whole lines of status/events.jsonl after a place in it. Rotation or truncation starts over at its beginning."""

    def __init__(self, path: Path, last_event_id: str | None) -> None:
        self._path = path
        known = _EVENT_ID.fullmatch(last_event_id or "")
        if known:
            self._inode, self._offset = int(known[1]), int(known[2])
        else:
            self._inode, self._offset = self._place_before_the_end()

    def _place_before_the_end(self) -> tuple[int, int]:
        try:
            stat = self._path.stat()
        except OSError:
            return 0, 0
        return stat.st_ino, -_BACKLOG_BYTES if stat.st_size > _BACKLOG_BYTES else 0

    def read(self) -> list[tuple[str, str]]:
        """New events as (id, one line of JSON); a damaged or unfinished line is left out or waited for."""
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                skip_first = self._seek(stat)
                file.seek(self._offset)
                data = file.read(_MAX_READ_BYTES)
        except OSError:
            return []
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == _MAX_READ_BYTES:
            self._offset += len(data)  # no line of ours is that long
        events = []
        for line in data[:end].splitlines(keepends=True):
            self._offset += len(line)
            if skip_first:
                skip_first = False
            elif text := _one_line(line):
                events.append((f"{self._inode}-{self._offset}", text))
        return events

    def _seek(self, stat: os.stat_result) -> bool:
        """Settle where to read; True when that may be the middle of a line."""
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._inode, self._offset = stat.st_ino, 0
        if self._offset < 0:
            self._offset = max(0, stat.st_size + self._offset)
            return self._offset > 0
        return False


def _one_line(line: bytes) -> str:
    """The event as compact ASCII JSON: nothing in it can end a line of the stream. '' for a damaged one."""
    try:
        return json.dumps(parse_json(line, "event"), separators=(",", ":"))
    except JsonError:
        return ""


class Changes:
    """Says which subjects have news, by modification times: a nudge for the page, which then asks their twins."""

    def __init__(self, workspace: Workspace, run: str) -> None:
        run_dir = workspace.run_dir(run)
        status = workspace.status_file
        queue = [workspace.lane(lane) for lane in LANES] + [workspace.rejected_dir, workspace.claim_dir]
        self._watched = {
            "status": [status(f"{name}.json") for name in ("daemon", "training_status", "deployment", "control")],
            "jobs": queue,
            "queue": queue,
            "leaderboard": [status("leaderboard.json")],
            "lineage": [status("data_lineage.json")],
            "checkpoints": [run_dir, status("deployment.json")],
        }
        self._seen = self._look()

    def read(self) -> list[str]:
        """The subjects that changed since the last call."""
        now = self._look()
        changed = [name for name, times in now.items() if times != self._seen[name]]
        self._seen = now
        return changed

    def _look(self) -> dict[str, list[int]]:
        return {name: [_changed_ns(path) for path in paths] for name, paths in self._watched.items()}


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


class Streams:
    """The event streams of one server, at most `most` at a time."""

    def __init__(self, workspace: Workspace, run: str, most: int = MAX_STREAMS) -> None:
        self._workspace = workspace
        self._run = run
        self._most = most
        self._open = 0
        self._lock = threading.Lock()
        self._ending = threading.Event()

    @property
    def count(self) -> int:
        """How many streams are open."""
        return self._open

    def end(self) -> None:
        """End every stream soon: the server stops."""
        self._ending.set()

    def open(self, last_event_id: str | None, client_left: Callable[[], bool]) -> "Stream":
        """Start a stream; close it to free its place. Raises OverloadedError."""
        with self._lock:
            if self._open >= self._most:
                fix = "poll the other addresses, they carry ETags"
                raise OverloadedError(f"{self._most} event streams are open, that is the most", fix=fix)
            self._open += 1
        log = EventLog(self._workspace.status_file("events.jsonl"), last_event_id)
        changes = Changes(self._workspace, self._run)
        return Stream(_pieces(log, changes, client_left, self._ending), self._free)

    def _free(self) -> None:
        with self._lock:
            self._open -= 1


class Stream:
    """The body of one answer. `close` is called by the server when it ended or the client left, before or after the
    first piece, which a plain generator's `finally` would miss."""

    def __init__(self, pieces: Iterator[bytes], release: Callable[[], None]) -> None:
        self._pieces = pieces
        self._release: Callable[[], None] | None = release

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


def _pieces(
    log: EventLog, changes: Changes, client_left: Callable[[], bool], ending: threading.Event
) -> Iterator[bytes]:
    yield b"retry: 3000\n\n"
    beat_at = time.monotonic() + _BEAT_EVERY_S
    while not ending.is_set() and not client_left():
        pieces = [f"id: {mark}\nevent: event\ndata: {text}\n\n" for mark, text in log.read()]
        if changed := changes.read():
            pieces.append(f"event: changed\ndata: {json.dumps(changed)}\n\n")
        if not pieces and time.monotonic() >= beat_at:
            pieces.append(": still here\n\n")
        if pieces:
            beat_at = time.monotonic() + _BEAT_EVERY_S
            yield "".join(pieces).encode()
        ending.wait(_LOOK_EVERY_S)
