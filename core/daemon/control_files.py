"""Consuming inbox/control/: commands in their order, requests, and the acknowledgement of each (beside all arrows).

Reads    inbox/control/*, at most 4 KB each, regular files only; never through a link
Writes   status/control.json {command, seen_at, effective_at, step, checkpoint, recent[]}
Errors   none: what cannot be understood is acknowledged with its error and removed
Effects  removes the files it has consumed (`pause` stays: its presence is the state)
"""

import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol  # control files and status documents are JSON

from core.control import COMMANDS, KNOWN_NAMES, MAX_CONTROL_BYTES, ControlFile, command_of, parse_control
from core.daemon.context import Context
from core.daemon.orders import OrderBook
from core.errors import ConfigError, DropforgeError
from core.paths import display_name
from core.status import iso_now, read_status, write_status

logger = logging.getLogger(__name__)

_RECENT = 50
_HALF_WRITTEN_S = 1.0  # how long a request that cannot be read yet may still be in the making


class Progress(Protocol):
    """What became of a command: `ack` {step, checkpoint} once it is effective, `note` for people."""

    @property
    def ack(self) -> dict[str, Any] | None: ...
    @property
    def note(self) -> str: ...


@dataclass(slots=True)
class Settled:
    """A command that was effective at once."""

    ack: dict[str, Any] | None = field(default_factory=dict)
    note: str = ""


Action = Callable[[ControlFile], Progress]


class Control:
    """Turns files into orders and requests."""

    def __init__(self, context: Context, orders: OrderBook, requests: Mapping[str, Action]) -> None:
        self._context = context
        self._orders = orders
        self._requests = requests
        self._open: list[tuple[dict[str, Any], Progress]] = []
        self._first_seen: dict[str, float] = {}
        known = read_status(context.workspace.status_file("control.json")) or {}
        self._recent: list[dict[str, Any]] = list(known.get("recent", []))[-_RECENT:]
        self._dirty = False
        self._pause_stamp: tuple[int, int] | None = None  # of the pause that was acknowledged last
        self.stop_asked: str | None = None
        self.ignored: list[tuple[Path, str]] = []

    def start_clean(self) -> None:
        """Bare commands left from an earlier run mean nothing now; `pause` and requests still do."""
        for name in self._listed():
            if command_of(name) in ("stop", "resume", "skip", "checkpoint"):
                self._remove(name)
                self._context.events.emit("control_stale", f"removed a {name!r} left from before the start")

    def tick(self, now: float) -> None:
        """Act on what lies there now; tell what has become effective."""
        if not os.path.isdir(self._context.workspace.control_dir):
            self._settle()  # an inbox that is gone for a while is no `resume`
            return
        found: dict[str, list[ControlFile]] = {}
        for name in self._listed():
            command = command_of(name) or ""
            parsed = self._read(name, command, now)
            if parsed is not None:
                found.setdefault(command, []).append(parsed)
        for command in COMMANDS:
            getattr(self, f"_{command}")(found.get(command, []))
        for command, action in self._requests.items():
            for request in found.get(command, []):
                self._request(request, action)
        self._settle()

    def note_stopped(self, step: int | None, checkpoint: str | None) -> None:
        """The stop is effective: called just before the daemon ends."""
        for entry, _ in self._open:
            entry |= {"effective_at": iso_now(), "step": step, "checkpoint": checkpoint}
        self._dirty = self._dirty or bool(self._open)
        self._open.clear()
        self._write()

    # --- one method a command, in the order of COMMANDS -----------------------------------------------------------

    def _stop(self, files: list[ControlFile]) -> None:
        for file in files:
            self.stop_asked = str(file.arguments.get("reason") or "inbox/control/stop")
            self._acknowledge(file, _Never())
            self._remove(file.name)

    def _resume(self, files: list[ControlFile]) -> None:
        if not files:
            return
        for name in self._listed():
            if command_of(name) in ("pause", "resume"):
                self._remove(name)
        self._level(None, files[0])

    def _pause(self, files: list[ControlFile]) -> None:
        present = [file for file in files if (self._context.workspace.control_dir / file.name).exists()]
        if present or self._orders.paused_by_hand:
            latest = max(present, key=lambda file: (self._stamp(file.name) or (0, 0))[1], default=None)
            self._level(latest, latest)

    def _level(self, pause: ControlFile | None, said: ControlFile | None) -> None:
        release = pause is not None and pause.arguments.get("release_gpu") is True
        reason = pause.arguments.get("reason") if pause is not None else None
        order = self._orders.by_hand(pause is not None, release_gpu=release, reason=_text(reason))
        stamp = self._stamp(pause.name) if pause is not None else None
        again = stamp is not None and stamp != self._pause_stamp
        self._pause_stamp = stamp
        if order is not None or (said is not None and said.command == "resume"):
            self._acknowledge(said or ControlFile("resume", "resume"), order or Settled())
        elif said is not None and again:
            pausing = (progress for entry, progress in self._open if entry["command"] == "pause")
            self._acknowledge(said, next(pausing, Settled(note="it is paused already")))

    def _skip(self, files: list[ControlFile]) -> None:
        for file in files:
            self._remove(file.name)
            active = self._context.queue.active()
            if active is None:
                self._acknowledge(file, Settled(note="no job was active"))
            else:
                reason = _text(file.arguments.get("reason"))
                self._acknowledge(file, self._orders.ask("skip", job_id=active.job_id, reason=reason))

    def _checkpoint(self, files: list[ControlFile]) -> None:
        for file in files:
            self._remove(file.name)
            self.ask_checkpoint(file)

    def ask_checkpoint(self, said: ControlFile) -> None:
        """Commit now, from a control file or SIGUSR1."""
        self._acknowledge(said, self._orders.ask("checkpoint", reason=_text(said.arguments.get("reason"))))

    def _request(self, request: ControlFile, action: Action) -> None:
        try:
            progress = action(request)
        except DropforgeError as error:
            progress = Settled(note=str(error))
            self._acknowledge(request, progress, error=str(error))
        else:
            self._acknowledge(request, progress)
        self._remove(request.name)

    # --- files ----------------------------------------------------------------------------------------------------

    def _listed(self) -> list[str]:
        """Regular files, oldest first; the rest is remembered as ignored."""
        folder = self._context.workspace.control_dir
        regular, self.ignored = [], []
        try:
            entries = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(folder)]
        except OSError:
            return []
        for name, found in entries:
            if not stat.S_ISREG(found.st_mode):
                self.ignored.append((folder / name, "a control file must be a regular file"))
            elif command_of(name) is not None:
                regular.append((found.st_mtime_ns, name))
            elif not name.startswith("."):
                self.ignored.append((folder / name, f"no control file (known: {KNOWN_NAMES})"))
        return [name for _, name in sorted(regular)]

    def _read(self, name: str, command: str, now: float) -> ControlFile | None:
        path = self._context.workspace.control_dir / name
        try:
            content = _head(path)
            parsed = parse_control(name, content)
        except FileNotFoundError:
            return None
        except ConfigError as error:
            if command in COMMANDS:  # an odd content does not make a command another one
                return ControlFile(name, command)
            if now - self._first_seen.setdefault(name, now) >= _HALF_WRITTEN_S:
                self._acknowledge(ControlFile(name, command), Settled(note=str(error)), error=str(error))
                self._remove(name)
            return None
        except OSError as error:
            self.ignored.append((path, f"cannot be read: {error.strerror}"))
            return None
        return parsed

    def _stamp(self, name: str) -> tuple[int, int] | None:
        """What changes when somebody asks again by the same name; None when the file has gone."""
        try:
            found = os.lstat(self._context.workspace.control_dir / name)
        except FileNotFoundError:
            return None
        return (found.st_ino, found.st_ctime_ns)

    def _remove(self, name: str) -> None:
        self._first_seen.pop(name, None)
        (self._context.workspace.control_dir / name).unlink(missing_ok=True)

    # --- acknowledgements -----------------------------------------------------------------------------------------

    def _acknowledge(self, file: ControlFile, progress: Progress, *, error: str | None = None) -> None:
        entry: dict[str, Any] = {
            "command": file.command,
            "seen_at": iso_now(),
            "effective_at": None,
            "step": None,
            "checkpoint": None,
            "id": file.arguments.get("id"),
            "file": display_name(file.name),
            "reason": _text(file.arguments.get("reason")),
            "error": error,
            "note": None,
        }
        self._recent = [*self._recent, entry][-_RECENT:]
        self._open.append((entry, progress))
        self._dirty = True
        what = f"{file.command}: {error or entry['reason'] or 'seen'}"
        self._context.events.emit("control", what, command=file.command, id=entry["id"], reason=entry["reason"])

    def _settle(self) -> None:
        still = []
        for entry, progress in self._open:
            ack = progress.ack
            if ack is None:
                still.append((entry, progress))
                continue
            entry |= {"effective_at": iso_now(), "step": ack.get("step"), "checkpoint": ack.get("checkpoint")}
            entry["note"] = progress.note or None
            entry["error"] = entry["error"] or ack.get("error")
            self._dirty = True
            if not entry["error"]:
                self._tell(entry)
        self._open = still
        self._write()

    def _tell(self, entry: Mapping[str, Any]) -> None:
        """What was asked for has happened: people who watch the log saw only that it was asked."""
        wanted = f" {entry['id']}" if entry["id"] else ""
        at = f" at step {entry['step']}" if entry["step"] is not None else ""
        done = f"{entry['command']}{wanted}: {entry['note'] or 'effective'}{at}"
        self._context.events.emit("control_done", done, checkpoint=entry["checkpoint"])

    def _write(self) -> None:
        if self._dirty and self._recent:
            latest = self._recent[-1]
            write_status(self._context.workspace.status_file("control.json"), {**latest, "recent": self._recent})
            self._dirty = False


class _Never:
    """The progress of a stop: told by note_stopped."""

    ack: dict[str, Any] | None = None
    note = ""


def _head(path: Path) -> bytes:
    """At most 4 KB and one byte of a file, never following a link, never waiting on a FIFO."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, MAX_CONTROL_BYTES + 1)
    finally:
        os.close(fd)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
