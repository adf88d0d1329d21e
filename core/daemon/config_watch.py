"""The configuration while the daemon runs: a valid edit is taken, an invalid one named (beside all arrows).

Reads    config.json when its inode data changed, and on SIGHUP
Writes   status/last_good_config.json: a copy of the last config.json that was taken; nothing is ever run from it
Errors   ConfigError only from the first load, naming that copy; later ones are kept in `error` and shown in status
"""

import os
from collections.abc import Sequence
from pathlib import Path

from core.atomic import write_bytes
from core.daemon.events import EventLog
from core.errors import ConfigError
from core.paths import Workspace
from core.settings import Settings, load_settings

_LOOK_EVERY_S = 1.0
# What cannot change without a new start: the lock, the chain and the children hang on them.
_FIXED = ("run", "model_name", "model_path")


class ConfigWatch:
    """Holds the last good Settings.

    Raises:
        ConfigError: the configuration is refused at the start.
    """

    def __init__(self, workspace: Workspace, overrides: Sequence[str] = ()) -> None:
        self._workspace = workspace
        self._overrides = tuple(overrides)
        self._seen = self._look()
        self._next_s = 0.0
        self.settings = self._first_load()
        self.error: str | None = None

    @property
    def _last_good(self) -> Path:
        return self._workspace.status_file("last_good_config.json")

    def _first_load(self) -> Settings:
        try:
            return load_settings(self._workspace, self._overrides)
        except ConfigError as error:
            if self._last_good.is_file():
                error.fix += f"; the last one that was taken is {self._last_good}"
            raise

    def keep_copy(self) -> None:
        """Remember the config.json that holds, for the person who breaks it. Raises StorageError."""
        write_bytes(self._last_good, self._workspace.config_file.read_bytes())

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `--set` strings, for the children."""
        return self._overrides

    def tick(self, now: float, events: EventLog, *, force: bool = False) -> bool:
        """Look whether the file changed; returns True when other settings hold from now on."""
        if now < self._next_s and not force:
            return False
        self._next_s = now + _LOOK_EVERY_S
        seen = self._look()
        if seen == self._seen and not force:
            return False
        self._seen = seen
        return self._reload(events)

    def _reload(self, events: EventLog) -> bool:
        try:
            fresh = load_settings(self._workspace, self._overrides)
            _refuse_fixed(self.settings, fresh)
        except ConfigError as error:
            self.error = str(error)
            events.emit("config_refused", f"config.json is refused, the last good one holds: {error}")
            return False
        self.error = None
        self.keep_copy()
        if fresh.sha256 == self.settings.sha256:
            return False
        self.settings = fresh
        events.emit("config_loaded", "the new config.json holds from the next job on", sha256=fresh.sha256)
        return True

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._workspace.config_file)
        except OSError:
            return None
        return (found.st_ino, found.st_size, found.st_mtime_ns)


def _refuse_fixed(old: Settings, new: Settings) -> None:
    for key in _FIXED:
        before, after = getattr(old, key), getattr(new, key)
        if before != after:
            raise ConfigError(
                f"{key} cannot change while the daemon runs: {before!r} -> {after!r}",
                where="config.json",
                fix="dropforge stop, then dropforge up (a changed base needs another run)",
            )
    for key in ("base_model", "model_architecture"):
        before, after = getattr(old.locked, key), getattr(new.locked, key)
        if before is not None and before != after:
            raise ConfigError(
                f"locked.{key} cannot change while the daemon runs: {before!r} -> {after!r}",
                where="config.json",
                fix=f"write {before!r} back",
            )
