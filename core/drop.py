"""How a producer hands a file over so that nothing is lost: the arrow into the inbox.

Writes   inbox/[high/|low/]NAME and NAME.meta.json: hidden first, fsynced, then renamed, sidecar before data
Units    sizes in bytes          Errors  StorageError; UsageError for a file that cannot be read
Effects  copies, never moves; a name that stands in the inbox already gets a mark, nothing is replaced
Used by  `dropforge submit`, generators
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core.atomic import fsync_dir, rename_durable, storage_error, write_json
from core.errors import UsageError
from core.lineage import SidecarError, read_sidecar
from core.paths import Workspace

_CHUNK_BYTES = 1 << 20
_SIDECAR_SUFFIX = ".meta.json"
_MARK_BYTES = 3  # of a name that stands in the inbox already, shown as twice as many characters and a dash


@dataclass(frozen=True, slots=True)
class Dropped:
    """A file that lies complete in the inbox."""

    path: Path
    sha256: str
    bytes: int


def drop(
    workspace: Workspace, source: Path, *, priority: str = "normal", sidecar: Mapping[str, object] | None = None
) -> Dropped:
    """Copy a file into the inbox.

    Args:
        priority: high, normal or low. sidecar: producer's facts; the copy's sha256 is added, so that a damaged copy
            is refused.

    Raises:
        UsageError: the source cannot be read. StorageError: the inbox refuses; nothing visible is left there.
    """
    folder = workspace.inbox if priority == "normal" else workspace.inbox / priority
    aside = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sha256, size_bytes = _copy(source, aside)
        target = _free_name(folder, source.name)
        write_json(target.with_name(target.name + _SIDECAR_SUFFIX), {**(sidecar or {}), "sha256": sha256})
        rename_durable(aside, target)
    except OSError as error:
        raise storage_error(error, folder) from error
    finally:
        with contextlib.suppress(OSError):  # the error that brought us here says more than the clean-up's
            aside.unlink(missing_ok=True)
    return Dropped(target, sha256, size_bytes)


def require_droppable(workspace: Workspace, source: Path) -> None:
    """Ask before a drop what would make it fail.

    Raises:
        UsageError: the file cannot be read, or its name leaves no room for its sidecar's.
    """
    longest = os.pathconf(workspace.root, "PC_NAME_MAX") - len(_SIDECAR_SUFFIX) - 2 * _MARK_BYTES - 1
    size_bytes = len(os.fsencode(source.name))
    if size_bytes > longest:
        why = f"the name has {size_bytes} bytes, which leaves no room for its sidecar"
        raise UsageError(why, where=str(source), fix=f"shorten it to {longest} bytes")
    with _opened(source):
        pass


def _opened(source: Path) -> BinaryIO:
    try:
        return source.open("rb")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(source), fix="name a readable file") from error


def _copy(source: Path, aside: Path) -> tuple[str, int]:
    """Copy and hash in one pass, fsynced. Raises UsageError for the source, OSError for the copy."""
    digest, size_bytes = hashlib.sha256(), 0
    with _opened(source) as reader, aside.open("xb") as writer:
        while piece := reader.read(_CHUNK_BYTES):
            digest.update(piece)
            size_bytes += len(piece)
            writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())
    fsync_dir(aside.parent)
    return digest.hexdigest(), size_bytes


def _free_name(folder: Path, name: str) -> Path:
    """The file's own name, or one with a mark when a file of that name waits there."""
    target = folder / name
    while os.path.lexists(target) or os.path.lexists(target.with_name(target.name + _SIDECAR_SUFFIX)):
        stem, dot, suffix = name.partition(".")
        target = folder / f"{stem}-{secrets.token_hex(_MARK_BYTES)}{dot}{suffix}"
    return target


def sidecar_beside(source: Path) -> dict[str, object]:
    """The producer's facts that lie beside a file to be dropped; empty without a sidecar.

    Raises:
        UsageError: the gates would refuse the sidecar.
    """
    path = source.with_name(source.name + _SIDECAR_SUFFIX)
    try:
        return dict(read_sidecar(path).doc)
    except SidecarError as error:
        raise UsageError(error.message, where=str(path), fix=error.fix or "mend or remove the sidecar") from error
    except OSError as error:
        raise storage_error(error, path) from error
