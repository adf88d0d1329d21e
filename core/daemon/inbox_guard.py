"""Is the inbox still the folder we may rename out of? (arrow: inbox -> intake)

Reads    inode data of inbox/ and queue/          Writes  missing sub-folders of a made-again inbox
Errors   StorageError at the start when a rename from inbox/ to queue/ is impossible; later a reason to stand still
"""

import contextlib
import os
import stat
from pathlib import Path

from core.atomic import storage_error
from core.daemon.context import Context
from core.paths import Workspace, display_name

_LOOK_EVERY_S = 1.0


def check_same_filesystem(workspace: Workspace) -> None:
    """Try the rename that every file will take. Raises StorageError saying why it cannot work."""
    name = ".probe"  # always the same, so that one left by a crash is used up by the next start
    source = workspace.claim_dir / name
    for target in (workspace.queue_dir / name, workspace.rejected_dir / name, workspace.checkpoints_dir / name):
        try:
            source.touch()
            source.rename(target)
        except OSError as error:
            raise storage_error(error, target) from error
        finally:
            for left in (source, target):
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)


class InboxGuard:
    """Looks once a second; work from a foreign folder is refused until ours is back."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._next_s = 0.0
        self._seen: tuple[int, int] | None = None
        self._usable = False

    def tick(self, now: float) -> bool:
        """True when the inbox may be read."""
        if now < self._next_s and self._usable and self._seen == _identity(self._context.workspace.inbox):
            return True
        self._next_s = now + _LOOK_EVERY_S
        reason = self._problem()
        if reason is None:
            self._context.blocks.intake.pop("inbox", None)
        else:
            if self._context.blocks.intake.get("inbox") != reason:
                self._context.events.emit("inbox_unusable", reason)
            self._context.blocks.intake["inbox"] = reason
        self._usable = reason is None
        self._seen = _identity(self._context.workspace.inbox)
        return self._usable

    def _problem(self) -> str | None:
        workspace = self._context.workspace
        try:
            inbox, queue = os.lstat(workspace.inbox), os.stat(workspace.queue_dir)
        except OSError as error:
            return f"{error.filename} is missing: mkdir it"
        if stat.S_ISLNK(inbox.st_mode):
            return f"{workspace.inbox} is a symbolic link now: make it a folder again"
        if not stat.S_ISDIR(inbox.st_mode):
            return f"{workspace.inbox} is no folder any more"
        if inbox.st_dev != queue.st_dev:
            return f"{workspace.inbox} is on another filesystem than {workspace.queue_dir} now (mounted?)"
        try:
            workspace.make_folders()
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return None

    def control_entries(self, entries: list[tuple[Path, str]]) -> list[dict[str, str]]:
        """Ignored files of inbox/control/, for status."""
        return [{"file": "control/" + display_name(path.name), "reason": reason} for path, reason in entries]


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(folder)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
