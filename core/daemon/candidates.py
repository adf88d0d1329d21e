"""What in the inbox may be taken, what must stay and why, and when a file is complete (arrow: inbox -> intake).

Reads    names and inode data of inbox/, inbox/high/, inbox/low/; opens a file only for the lease probe
Units    seconds by a monotonic clock; never the age of an mtime
Errors   none: what cannot be looked at is listed as ignored with the reason
Effects  takes and gives back a read lease (fcntl) on a candidate; nothing is read, moved or deleted
"""

import errno
import fcntl
import fnmatch
import os
import signal
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.job_queue import OUR_NAMES, SET_ASIDE_SUFFIX, SIDECAR_SUFFIX
from core.paths import Workspace, display_name

# Names that other programs give to files they have not finished, each with who does so.
_UNFINISHED = {
    "*.tmp": "a temporary file",
    "*.temp": "a temporary file",
    "*.part": "a partial download",
    "*.partial": "a partial download",
    "*.filepart": "a partial WinSCP upload",
    "*.crdownload": "a partial Chromium download",
    "*.download": "a partial Safari download",
    "*.swp": "an editor's swap file",
    "*.swx": "an editor's swap file",
    "*~": "an editor's backup",
    "#*#": "an editor's autosave",
    "4913": "an editor's probe",
}
_HOUSEHOLD = {"README.md", ".gitkeep", ".gitignore", ".claim", "control", "rejected", "high", "low"}

Signature = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A regular file with a name that may be taken. `lane` is that of its folder."""

    path: Path
    lane: str
    signature: Signature
    sidecar: Path | None

    @property
    def order(self) -> tuple[int, bytes]:
        """(mtime_ns, name): the order in which files settled in one scan are claimed."""
        return (self.signature[1], os.fsencode(self.path.name))


@dataclass(slots=True)
class Scan:
    """One look at the inbox."""

    candidates: list[Candidate] = field(default_factory=list)
    ignored: list[tuple[Path, str]] = field(default_factory=list)
    lone_sidecars: list[Path] = field(default_factory=list)


def scan(workspace: Workspace, suffixes: Collection[str]) -> Scan:
    """List the inbox. Raises OSError when inbox/ itself cannot be listed."""
    found = Scan()
    _scan_folder(workspace.inbox, "normal", suffixes, found, required=True)
    _scan_folder(workspace.inbox / "high", "high", suffixes, found, required=False)
    _scan_folder(workspace.inbox / "low", "low", suffixes, found, required=False)
    found.candidates.sort(key=lambda candidate: candidate.order)
    return found


def _scan_folder(folder: Path, lane: str, suffixes: Collection[str], found: Scan, *, required: bool) -> None:
    try:
        if folder.is_symlink():
            found.ignored.append((folder, "a symbolic link is never followed"))
            return
        with os.scandir(folder) as entries:
            listed = [(entry.name, _lstat(entry)) for entry in entries if entry.name not in _HOUSEHOLD]
    except OSError:
        if required:
            raise
        return
    here = {name: status for name, status in listed if status is not None}  # None: it is gone already
    misspelt = {name[: -len(SIDECAR_SUFFIX)] for name in here if is_misspelt_sidecar(name)}
    for name, status in here.items():
        path = folder / name
        if name.endswith(SIDECAR_SUFFIX) and stat.S_ISREG(status.st_mode) and not name.startswith("."):
            if name.removesuffix(SIDECAR_SUFFIX) not in here:
                found.lone_sidecars.append(path)
        elif reason := why_ignored(name, status, suffixes) or _bad_sidecar(name, here, misspelt):
            found.ignored.append((path, reason))
        else:
            found.candidates.append(_candidate(path, lane, status, name + SIDECAR_SUFFIX in here))


def _lstat(entry: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None


def _candidate(path: Path, lane: str, status: os.stat_result, has_sidecar: bool) -> Candidate:
    sidecar = path.with_name(path.name + SIDECAR_SUFFIX) if has_sidecar else None
    return Candidate(path, lane, signature(status), sidecar)


def _bad_sidecar(name: str, here: Mapping[str, os.stat_result], misspelt: Collection[str]) -> str | None:
    """Why a file must stay though its own name is good: what its producer says about it may not be read."""
    if name in misspelt:
        return f"its sidecar is not found: rename that to {name}{SIDECAR_SUFFIX}"
    beside = here.get(name + SIDECAR_SUFFIX)
    kind = _kind(beside.st_mode) if beside is not None else None
    return f"its sidecar is {kind}, not a regular file: copy the sidecar itself here, or remove it" if kind else None


def signature(status: os.stat_result) -> Signature:
    """What changes when a file is written or replaced."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def why_ignored(name: str, status: os.stat_result, suffixes: Collection[str]) -> str | None:
    """The reason a directory entry stays in the inbox, or None when it may be taken."""
    kind = _kind(status.st_mode)
    if kind is not None:
        return f"{kind}, not a regular file"
    if name.startswith("."):
        return "a hidden name"
    lower = name.lower()
    for pattern, reason in _UNFINISHED.items():
        if fnmatch.fnmatchcase(lower, pattern):
            return f"{reason} by its name ({pattern})"
    if ".~lock" in lower or ".syncthing." in lower:
        return "another program's lock or temporary file"
    if name.endswith(SET_ASIDE_SUFFIX):
        return f"*{SET_ASIDE_SUFFIX} is our own name for rows set aside: rename it"
    if name in OUR_NAMES:
        return f"{name} is the name of a file of our own in each job's folder: rename it"
    if is_misspelt_sidecar(name):
        return f"a sidecar's name ends in {SIDECAR_SUFFIX}, in small letters: rename it"
    if not lower.endswith(tuple(suffixes)):
        return f"suffix not known (known: {', '.join(sorted(suffixes))})"
    return None


def is_misspelt_sidecar(name: str) -> bool:
    """True for `DATA.CSV.META.JSON`: meant as a sidecar, and not found as one."""
    return name.lower().endswith(SIDECAR_SUFFIX) and not name.endswith(SIDECAR_SUFFIX)


def _kind(mode: int) -> str | None:
    kinds = (
        (stat.S_ISREG, None),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((text for test, text in kinds if test(mode)), "a device")


def probe(path: Path) -> str | None:
    """Is anybody still writing? Returns None when not, else the reason to wait.

    A read lease is refused by the kernel while a writer has the file open. Where leases do not exist (some network
    filesystems) or are not ours to take, the quiet window alone decides.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError:
        return "permission denied: let the daemon's user read it"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    try:
        # Should a writer open the file while we hold the lease, the kernel signals us: SIGURG, ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, int(signal.SIGURG))
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return "still open for writing" if error.errno == errno.EAGAIN else None
    finally:
        os.close(fd)
    return None


class Settler:
    """Remembers since when each file has stood unchanged."""

    def __init__(self, ask: Callable[[Path], str | None] = probe) -> None:
        self._ask = ask
        self._seen: dict[Path, tuple[Signature, float]] = {}
        self.waiting: list[tuple[Path, str]] = []
        self.next_due_s: float | None = None

    def settled(self, candidates: Collection[Candidate], window_s: float, now: float) -> list[Candidate]:
        """Those unchanged for `window_s` seconds with no writer, in their order; forgets files that went away.

        Side effects: `waiting` lists those that a writer or a permission keeps; `next_due_s` says when to look again.
        """
        previous, self._seen, self.waiting, self.next_due_s = self._seen, {}, [], None
        ready = []
        for candidate in candidates:
            known = previous.get(candidate.path)
            since = known[1] if known is not None and known[0] == candidate.signature else now
            self._seen[candidate.path] = (candidate.signature, since)
            if now - since < window_s:
                self._due(since + window_s)
            elif (reason := self._blocked(candidate)) is not None:
                self.waiting.append((candidate.path, reason))
                self._due(now + max(0.2, min(window_s, 1.0)))
            else:
                ready.append(candidate)
        return ready

    def _blocked(self, candidate: Candidate) -> str | None:
        reason = self._ask(candidate.path)
        if reason is None and candidate.sidecar is not None:
            reason = self._ask(candidate.sidecar)
            return f"its sidecar: {reason}" if reason else None
        return reason

    def _due(self, when: float) -> None:
        self.next_due_s = when if self.next_due_s is None else min(self.next_due_s, when)


def describe(entries: Collection[tuple[Path, str]], workspace: Workspace, limit: int = 1000) -> list[dict[str, str]]:
    """The `ignored` of status/daemon.json: names made safe to show, at most `limit` of them."""
    shown = sorted(entries)[:limit]
    listed = [{"file": display_name(path.relative_to(workspace.inbox)), "reason": reason} for path, reason in shown]
    if len(entries) > limit:
        listed.append({"file": "...", "reason": f"and {len(entries) - limit} more"})
    return listed
