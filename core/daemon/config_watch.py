"""The configuration while the daemon runs: a valid edit is taken, an invalid one named (beside all arrows).

Reads    config.json when its inode data changed, and on SIGHUP
Writes   status/last_good_config.json: the config.json that was taken last. What the daemon starts loads that, so that
         nothing works on an edit that was refused; a start of the daemon itself never does
Errors   ConfigError only from the first load, naming that copy; later ones are kept in `error` and shown in status
"""

import os
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from core.atomic import storage_error, write_bytes
from core.daemon.events import EventLog
from core.errors import ConfigError
from core.paths import Workspace
from core.settings import Settings, load_settings

_LOOK_EVERY_S = 1.0
# What cannot change without a new start: the lock, the chain and the children hang on them.
_FIXED = ("run", "model_name", "model_path", "inference.host", "inference.port", "inference.models_dir")
_Look = tuple[int, ...] | None


class ConfigWatch:
    """Holds the last good Settings.

    Raises:
        ConfigError: the configuration is refused at the start.
    """

    def __init__(self, workspace: Workspace, overrides: Sequence[str] = ()) -> None:
        self._workspace = workspace
        self._overrides = tuple(overrides)
        self._seen = _look(workspace.config_file)
        self._next_s = 0.0
        self._text, self.settings = self._first_load()
        self._copied: _Look = None  # how the copy looked when we wrote it
        self.error: str | None = None

    def _first_load(self) -> tuple[bytes, Settings]:
        try:
            return self._load()
        except ConfigError as error:
            copy = self._workspace.held_config_file
            if copy.is_file():
                error.fix += f"; the last one that was taken is {copy}"
            raise

    def _load(self) -> tuple[bytes, Settings]:
        """Read once, so that the copy is what was checked. Raises ConfigError."""
        file = self._workspace.config_file
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError(storage_error(error, file).message, where=str(file), fix=f"mend {file}") from error
        return text, load_settings(self._workspace, self._overrides, text=text)

    def keep_copy(self) -> None:
        """Write what holds where the children, and the person who breaks config.json, find it. Raises StorageError."""
        self._write_copy(self._text)

    def _write_copy(self, text: bytes) -> None:
        write_bytes(self._workspace.held_config_file, text)
        self._copied = _look(self._workspace.held_config_file)

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `--set` strings, for the children."""
        return self._overrides

    def tick(self, now: float, events: EventLog, *, force: bool = False) -> bool:
        """Look whether the file changed.

        Returns True when what was refused before may be tried again: other settings hold, or config.json is in order
        again, or the children's copy had been lost.

        Raises:
            StorageError: the copy cannot be written; the settings before hold, and the next call tries again.
        """
        if now < self._next_s and not force:
            return False
        self._next_s = now + _LOOK_EVERY_S
        seen = _look(self._workspace.config_file)
        if seen == self._seen and not force:
            return self._mend_copy()
        taken = self._reload(events)
        self._seen = seen
        return taken

    def _reload(self, events: EventLog) -> bool:
        try:
            text, fresh = self._load()
            _refuse_fixed(self.settings, fresh)
        except ConfigError as error:
            self.error = str(error)
            events.emit("config_refused", f"config.json is refused, the last good one holds: {error}")
            return self._mend_copy()
        self._write_copy(text)
        mended, self.error = self.error is not None, None
        changed = fresh.sha256 != self.settings.sha256
        self._text, self.settings = text, fresh
        if changed:
            events.emit("config_loaded", "the new config.json holds from the next job on", sha256=fresh.sha256)
        elif mended:
            events.emit("config_loaded", "config.json is in order again, and says what held", sha256=fresh.sha256)
        return changed or mended

    def _mend_copy(self) -> bool:
        """Write the copy again when somebody else touched or removed it; returns whether that was so."""
        if self._copied in (None, _look(self._workspace.held_config_file)):
            return False
        self.keep_copy()
        return True


def _look(file: Path) -> _Look:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _refuse_fixed(old: Settings, new: Settings) -> None:
    for key in _FIXED:
        before, after = attrgetter(key)(old), attrgetter(key)(new)
        if before != after:
            server = "and dropforge serve, where that runs the server, again"
            more = server if key.startswith("inference.") else "a changed base needs another run"
            raise ConfigError(
                f"{key} cannot change while the daemon runs: {before!r} -> {after!r}",
                where="config.json",
                fix=f"dropforge stop, then dropforge up ({more})",
            )
    for key in ("base_model", "model_architecture"):
        before, after = getattr(old.locked, key), getattr(new.locked, key)
        if before is not None and before != after:
            raise ConfigError(
                f"locked.{key} cannot change while the daemon runs: {before!r} -> {after!r}",
                where="config.json",
                fix=f"write {before!r} back",
            )
