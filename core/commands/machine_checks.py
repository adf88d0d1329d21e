"""What `dropforge doctor` asks of the machine and the folders of a root. Beside the arrows: the CLI.

Reads    the interpreter, the clock, the disk, inotify, installed programs
Writes   a hidden file in each data room, removed again          Units  sizes in bytes, times in seconds
Errors   none: what is wrong is a finding with its one fix
"""

import datetime
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from core.atomic import storage_error
from core.job_queue import JobQueue
from core.paths import Workspace

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
_OLDEST_PYTHON = (3, 11)
_LITTLE_DISK_BYTES = 1_000_000_000
_TIGHT_DISK_BYTES = 10_000_000_000
_CHECKPOINT_ROOM = 1.5  # what a commit needs free, in sizes of the last checkpoint
_EVENT_WAIT_S = 3.0
_RELEASED = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)  # a clock before this is wrong


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. `fix` is empty when nothing is to be done."""

    name: str
    status: str
    message: str
    fix: str = ""

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "status": self.status, "message": self.message, "fix": self.fix or None}


def machine_findings(workspace: Workspace) -> Iterator[Finding]:
    """Every check that needs no settings."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": python_version,
        "clock": lambda: clock(workspace),
        "permissions": lambda: permissions(workspace),
        "filesystem": lambda: one_filesystem(workspace),
        "disk": lambda: disk(workspace),
        "inotify": lambda: inotify(workspace),
        "rsync": lambda: program("rsync", "publishing copies checkpoints with it"),
        "ssh": lambda: program("ssh", "publishing to a second host goes over it", needed=workspace.hosts_file.exists()),
    }
    for name, check in checks.items():
        try:
            yield check()
        except OSError as error:
            yield refused(name, error)


def refused(name: str, error: OSError) -> Finding:
    """The finding of a check that the operating system stopped, e.g. at a folder this user may not list."""
    explained = storage_error(error, Path(os.fsdecode(error.filename or "?")))
    return Finding(name, FAIL, f"{explained.where}: {explained.message}", explained.fix)


def python_version() -> Finding:
    """Python and its libraries are as the project needs them."""
    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("python", FAIL, f"Python {version} is too old", "install Python 3.11 or newer")
    return Finding("python", PASS, f"Python {version} at {sys.executable}")


def clock(workspace: Workspace) -> Finding:
    """The clock is plausible and has not gone back behind the newest job."""
    now = datetime.datetime.now(datetime.UTC)
    if now < _RELEASED:
        return Finding("clock", FAIL, f"the clock says {now:%Y-%m-%d}", "set it: timedatectl set-ntp true")
    last = JobQueue(workspace).last_id() or ""
    if last > f"{now + datetime.timedelta(minutes=1):%Y%m%dT%H%M%S}":
        message = (
            f"the newest job is from the future ({last[:15]}): the clock has gone back; order is kept all the same"
        )
        return Finding("clock", WARN, message, "set it: timedatectl set-ntp true")
    return Finding("clock", PASS, f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _rooms(workspace: Workspace) -> list[Path]:
    return [workspace.inbox, workspace.queue_dir, workspace.checkpoints_dir, workspace.status_dir]


def permissions(workspace: Workspace) -> Finding:
    """Every data room takes a file from this user."""
    for room in _rooms(workspace):
        probe = room / f".doctor-{os.getpid()}.tmp"
        try:
            room.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            return Finding("permissions", FAIL, f"{room}: {error.strerror}", f"chown -R {os.getuid()} {workspace.root}")
    return Finding("permissions", PASS, "inbox/, queue/, checkpoints/ and status/ are writable")


def one_filesystem(workspace: Workspace) -> Finding:
    """Hand-overs are renames, so the rooms must lie on one filesystem."""
    devices = {room.name: room.stat().st_dev for room in _rooms(workspace) if room.exists()}
    if len(set(devices.values())) > 1:
        odd = next(name for name, device in devices.items() if device != devices.get("queue"))
        message = f"{odd}/ is on another filesystem than queue/: files cannot be handed over by rename"
        return Finding("filesystem", FAIL, message, f"move {workspace.root} as a whole to one filesystem")
    return Finding("filesystem", PASS, "all rooms are on one filesystem")


def disk(workspace: Workspace) -> Finding:
    """There is room for the next checkpoint."""
    free_bytes = shutil.disk_usage(workspace.root).free
    last_bytes = _last_checkpoint_bytes(workspace)
    needed_bytes = max(_LITTLE_DISK_BYTES, int(last_bytes * _CHECKPOINT_ROOM))
    free = f"{free_bytes / 1e9:.1f} GB free"
    if free_bytes < needed_bytes:
        return Finding("disk", FAIL, f"{free}, a commit needs {needed_bytes / 1e9:.1f} GB", "free space on that disk")
    if free_bytes < max(_TIGHT_DISK_BYTES, 5 * last_bytes):
        return Finding("disk", WARN, f"{free}: little room for checkpoints", "free space or lower checkpoints.keep")
    return Finding("disk", PASS, free)


def _last_checkpoint_bytes(workspace: Workspace) -> int:
    """The size of the largest committed checkpoint folder, 0 without one."""
    folders = workspace.checkpoints_dir.glob("*/checkpoint-*")
    sizes = [sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) for folder in folders if folder.is_dir()]
    return max(sizes, default=0)


class _Seen(FileSystemEventHandler):
    def __init__(self, name: str) -> None:
        self.event = threading.Event()
        self._name = name

    def on_any_event(self, event: FileSystemEvent) -> None:
        if os.fsdecode(event.src_path).endswith(self._name):
            self.event.set()


def inotify(workspace: Workspace) -> Finding:
    """A file written into the inbox is noticed at once."""
    probe = workspace.inbox / f".doctor-inotify-{os.getpid()}.tmp"
    handler, observer = _Seen(probe.name), Observer()
    try:
        observer.schedule(handler, str(workspace.inbox))
        observer.start()
        probe.write_bytes(b"?")
        seen = handler.event.wait(_EVENT_WAIT_S)
    except OSError as error:
        fix = "raise fs.inotify.max_user_instances and max_user_watches with sysctl"
        return Finding("inotify", WARN, f"no events ({error.strerror}): files are found by rescans only", fix)
    finally:
        probe.unlink(missing_ok=True)
        if observer.is_alive():
            observer.stop()
            observer.join()
    if seen:
        return Finding("inotify", PASS, "a file written into inbox/ was noticed at once")
    message = "a file written into inbox/ was not noticed (network filesystem?): rescans find it within 10 s"
    return Finding("inotify", WARN, message, "put the root on a local filesystem")


def program(name: str, purpose: str, *, needed: bool = True) -> Finding:
    """An external program is installed."""
    path = shutil.which(name)
    if path:
        return Finding(name, PASS, path)
    package = "openssh-client" if name == "ssh" else name
    return Finding(name, FAIL if needed else WARN, f"not installed: {purpose}", f"apt-get install {package}")
