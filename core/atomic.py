"""Write aside, fsync, rename, fsync the folder: how every arrow puts a file or a folder where others look.

Reads    any file it is told to          Writes  the target only by rename, from a hidden name in the same folder
Units    sizes in bytes                  Errors  StorageError naming the path; JsonError for a damaged document
Effects  fsync of file and folder when `durable`; an fsync that failed is never retried on the same descriptor
"""

import ctypes
import errno
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any  # a JSON document has any shape; schemas decide

from core.errors import JsonError, StorageError

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def fsync_dir(folder: Path) -> None:
    """Make the entries of a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the bytes of a file survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(folder: Path) -> None:
    """fsync every file below a folder, then every folder from the leaves up."""
    for parent, _folders, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_file(Path(parent) / name)
        fsync_dir(Path(parent))


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace `path` with `data`: a reader sees the old bytes or the new ones, never a mixture.

    Raises:
        StorageError: the disk is full, read-only or failing; the old file is untouched.
    """
    aside = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        try:
            _write_out(aside, data, durable)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        if durable:
            fsync_dir(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def _write_out(path: Path, data: bytes, durable: bool) -> None:
    with path.open("xb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def write_json(path: Path, doc: object, *, durable: bool = True) -> None:
    """Replace `path` with a strict JSON document (NaN and lone surrogates are refused by ValueError)."""
    text = json.dumps(doc, ensure_ascii=False, allow_nan=False, indent=1)
    write_bytes(path, text.encode() + b"\n", durable=durable)


def parse_json(data: bytes, where: str, line: int | None = None) -> Any:  # any JSON shape
    """Read one strict JSON document: no NaN, no duplicate keys, valid UTF-8.

    Args:
        line: the number of the line of `where` that the document stands in; None when it is the whole file.

    Raises:
        JsonError: naming `where`, the line and the column.
    """
    file, where = where, where if line is None else f"{where}:{line}"
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        place = f"{file}:{(line or 1) + error.lineno - 1}:{error.colno}"
        raise JsonError(f"not valid JSON: {error.msg}", where=place) from error
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}", where=where) from error
    except (ValueError, RecursionError) as error:
        raise JsonError(f"not valid JSON: {error}", where=where) from error


def parse_written_json(data: bytes, where: str, line: int | None = None) -> Any:  # any JSON shape
    """`parse_json` of what a person wrote: a lone surrogate, which no hash and no file takes, is refused too."""
    doc = parse_json(data, where, line)
    if b"\\u" in data:
        try:
            json.dumps(doc, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            place = where if line is None else f"{where}:{line}"
            raise JsonError("not valid JSON: a lone surrogate escape (\\ud800-\\udfff)", where=place) from error
    return doc


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    doc = dict(pairs)
    if len(doc) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # set.add returns None on purpose
        raise ValueError(f"key {twice!r} stands twice")
    return doc


def read_json(path: Path) -> dict[str, Any]:  # any JSON object
    """Read a JSON object from a file.

    Raises:
        JsonError: damaged, or not an object.
        StorageError: the file cannot be read (missing included).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise storage_error(error, path) from error
    doc = parse_json(data, str(path))
    if not isinstance(doc, dict):
        raise JsonError("the document is not a JSON object", where=str(path))
    return doc


def rename_durable(source: Path, target: Path) -> None:
    """Move a file or folder within one filesystem; never replaces anything.

    Side effects: fsyncs both parent folders. A rename that failed after it happened (NFS) counts as done.

    Raises:
        StorageError: the target exists, the source is gone, or the filesystem refuses.
    """
    result = _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    if result != 0:
        code = ctypes.get_errno()
        happened = code != errno.EEXIST and os.path.lexists(target) and not os.path.lexists(source)
        if not happened:
            raise storage_error(OSError(code, os.strerror(code)), target)
    try:
        fsync_dir(target.parent)
        if source.parent != target.parent:
            fsync_dir(source.parent)
    except OSError as error:
        raise storage_error(error, target) from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file as 64 hex digits. Raises OSError.

    Read through one small buffer: a megabyte a thread was kept by the allocator for each thread that ever hashed.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FIXES = {
    errno.ENOSPC: "free space on that disk; Dropforge goes on by itself",
    errno.EDQUOT: "raise the quota or free space; Dropforge goes on by itself",
    errno.EROFS: "mount the filesystem writable again",
    errno.EACCES: "give this user write permission there (chown or chmod)",
    errno.EPERM: "give this user write permission there (chown, chmod, chattr -i)",
    errno.EXDEV: "put inbox/, queue/ and checkpoints/ on one filesystem",
    errno.EMFILE: "raise the open-files limit (ulimit -n)",
}


def storage_error(error: OSError, path: Path) -> StorageError:
    """Word an operating-system error for a person, keeping its cause."""
    return StorageError(
        f"{error.strerror or error}",
        where=str(path),
        fix=_FIXES.get(error.errno or 0, "look at that path with ls -ld"),
    )
