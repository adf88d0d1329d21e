"""Being woken when something is dropped (arrow: inbox -> intake). A wake-up only: the scan is the truth.

Reads    inotify events of inbox/, inbox/high/, inbox/low/ and inbox/control/ through watchdog
Errors   none: when inotify refuses (no watches left), `watching` is False and the loop scans more often
Effects  one observer thread; armed again when a watched folder was replaced (watchdog does not notice by itself)
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

logger = logging.getLogger(__name__)

# Not opened and closed-without-write: our own lease probe makes those, and would wake us for ever.
_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]
Identity = tuple[int, int]


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.seen = False

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.seen = True  # before the wake-up, which may be acted on at once
        self._wake()


class FileWatcher:
    """Watches a few folders, not their sub-folders."""

    def __init__(self, folders: Sequence[Path], wake: Callable[[], None]) -> None:
        self._folders = tuple(folders)
        self._handler = _Waker(wake)
        self._observer: BaseObserver | None = None
        self._armed: dict[Path, Identity | None] = {}

    @property
    def watching(self) -> bool:
        return self._observer is not None

    def take_seen(self) -> bool:
        """Whether anything has moved since the last call."""
        seen, self._handler.seen = self._handler.seen, False
        return seen

    def ensure(self) -> bool:
        """Arm the watch, again when a folder is another one than at the last call.

        Returns True when it was armed now: the caller then scans, since events before that are lost.
        """
        present = {folder: _identity(folder) for folder in self._folders}
        if self.watching and present == self._armed:
            return False
        self.stop()
        self._armed = present
        self._observer = self._arm([folder for folder, identity in present.items() if identity is not None])
        return True

    def _arm(self, folders: Sequence[Path]) -> BaseObserver | None:
        observer = Observer()
        try:
            for folder in folders:
                observer.schedule(self._handler, str(folder), event_filter=_EVENTS)
            observer.start()
        except OSError as error:  # fs.inotify.max_user_watches or max_user_instances reached
            logger.warning("no inotify watch (%s): scanning every second instead", error.strerror)
            observer.unschedule_all()
            return None
        return observer

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5)
            self._observer = None


def _identity(folder: Path) -> Identity | None:
    try:
        found = os.lstat(folder)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
