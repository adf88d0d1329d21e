"""One daemon and one trainer a root, and no child that outlives its parent (beside all arrows).

Reads    status/daemon.lock          Writes  status/daemon.lock (its text is information, the flock is the truth)
Units    seconds                     Errors  AlreadyRunningError (exit 3) naming pid and since; StorageError
Effects  holds a flock; the descriptor is handed to the trainer, so a new daemon waits until an orphan has ended
"""

import ctypes
import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any  # what a lock file says is JSON

from core.atomic import parse_json, storage_error
from core.errors import AlreadyRunningError, JsonError
from core.status import iso_now

PARENT_VARIABLE = "_DROPFORGE_PARENT_PID"  # no DROPFORGE_ prefix: those are settings
WAIT_S = 5.0  # an orphan trainer dies by its parent-death signal well within this
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_LOCK_TEXT_BYTES = 4096


def die_with_parent(parent_pid: int | None = None) -> None:
    """Ask the kernel for SIGKILL when the parent ends; exit at once when it has ended already.

    Every child calls this first. Without `parent_pid` and without its environment variable (a start by hand) it does
    nothing. The signal comes when the parent's forking *thread* ends, so parents fork from their main thread.

    Side effects: removes the variable, so that grandchildren do not compare themselves with it.
    """
    named = os.environ.pop(PARENT_VARIABLE, "")
    expected = parent_pid if parent_pid is not None else int(named) if named.isdecimal() else None
    if expected is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != expected:  # it ended between the fork and the prctl
        sys.exit(1)


def boot_id() -> str:
    """The kernel's id of this boot, so that a pid of an earlier boot is never taken for a living process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


class InstanceLock:
    """The flock that makes a daemon the only one of its root. Release it only by ending the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def acquire(
        cls,
        path: Path,
        *,
        wait_s: float = WAIT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> "InstanceLock":
        """Take the lock, waiting up to `wait_s` seconds for its holder to end.

        Raises:
            AlreadyRunningError: it is held; the message names the holder's pid and since when.
            StorageError: the lock file cannot be opened.
        """
        deadline = clock() + wait_s
        while True:
            fd = _open(path)
            if _try_lock(fd) and _is_same_file(fd, path):
                _write_holder(fd)
                return cls(path, fd)
            holder = _read_holder(fd)
            os.close(fd)
            if clock() >= deadline:
                raise AlreadyRunningError(
                    f"a daemon is already running here: {_describe(holder)}",
                    where=str(path.parent.parent),
                    fix="dropforge stop ends it; dropforge status shows it",
                )
            sleep(_POLL_S)

    def release(self) -> None:
        """Close our descriptor (a trainer that still lives keeps the lock)."""
        os.close(self.fd)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise storage_error(error, path) from error


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is_same_file(fd: int, path: Path) -> bool:
    """False when somebody removed status/ between our open and our lock: two holders would be possible."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(fd: int) -> None:
    text = json.dumps({"pid": os.getpid(), "since": iso_now(), "boot_id": boot_id()}).encode()
    os.ftruncate(fd, 0)
    os.pwrite(fd, text, 0)


def _read_holder(fd: int) -> dict[str, Any]:
    try:
        doc = parse_json(os.pread(fd, _LOCK_TEXT_BYTES, 0), "daemon.lock")
    except (OSError, JsonError):
        return {}
    return doc if isinstance(doc, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    pid, since = holder.get("pid", "unknown"), holder.get("since", "unknown")
    alive = isinstance(pid, int) and Path(f"/proc/{pid}").exists()
    return f"pid {pid}, since {since}" + ("" if alive else " (that process has ended; its trainer still lives)")
