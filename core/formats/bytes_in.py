"""Bytes of a dropped file: what it really is, and its content unpacked within bounds (arrow: intake).

Reads    one file in chunks of 112 KiB         Writes   nothing, an archive is never unpacked on disk
Errors   FormatError: content and suffix disagree, a broken or a swollen archive; OSError of the disk
"""

import hashlib
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Protocol

import zstandard

from core.formats.rows import FormatError, Notes, RowProblem, reencode

CHUNK_BYTES = 112 << 10  # stays in the cache of one core; a temporary of 128 KiB and more is mapped anew by malloc
_MAX_RATIO = 200  # text packs about 5:1, rarely 50:1; a bomb 1,000:1
_FREE_BYTES = 64 << 20  # below this no ratio matters
_ZEROS = "full of NUL bytes"  # as a copy is that a crash or a full disk cut off
_ZSTD_WINDOW_BYTES = 128 << 20
_COPY = "copy the whole file again"
Unpack = Callable[[Iterable[bytes]], Iterator[bytes]]

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{bytes([low]) + b"\x2a\x4d\x18": "zstd" for low in range(0x50, 0x60)},  # a skippable frame first, as pzstd has
    b"PK\x03\x04": "zip (or an office document)",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf": "7-zip",
    b"%PDF": "PDF",
    b"SQLite format 3": "SQLite",
    b"\xd0\xcf\x11\xe0": "an old office document",
    b"\x80\x02": "pickle",
    b"\x80\x03": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    b"\x93NUMPY": "numpy",
    b"\x89HDF": "HDF5",
    b"\x7fELF": "a program",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class Leap(Protocol):
    """A part of a file whose rows are known already: from `start`, where a line begins, `bytes` on.

    `take` is told the number and line of the first row when all before has been read, and gives the number of rows.
    """

    start: int
    bytes: int

    def take(self, row: int, line: int) -> int: ...


def file_chunks(path: Path, notes: Notes | None = None, start: int = 0, leap: Leap | None = None) -> Iterator[bytes]:
    """Read a file front to back; its SHA-256 and size stand in `notes`, if given, afterwards. Raises OSError.

    Args:
        leap: an empty chunk is given at its start, when all that follows is hashed; its bytes are not given.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        if leap is not None:
            yield from _chunks(file, leap.start, digest, notes)
            for _ in _chunks(file, sys.maxsize, digest, notes):
                pass
            yield b""
            file.seek(leap.start + leap.bytes)
            yield from _chunks(file, sys.maxsize, digest, None)
        else:
            yield from _chunks(file, sys.maxsize, digest, notes)
    if notes is not None:
        notes.sha256 = digest.hexdigest()


def _chunks(file: FileIO, most: int, digest: "hashlib._Hash", notes: Notes | None) -> Iterator[bytes]:
    while most > 0 and (chunk := file.read(min(CHUNK_BYTES, most))):
        most -= len(chunk)
        if notes is not None:
            digest.update(chunk)
            notes.size_bytes += len(chunk)
        yield chunk


def check_magic(path: Path, expected: str | None) -> None:
    """Refuse a file whose first bytes say that it is something else than its name says.

    Args:
        expected: the kind that must be found, "Parquet" for example; None for text.

    Raises:
        FormatError: naming both.
        OSError: the disk fails.
    """
    with path.open("rb") as file:
        head = file.read(256)
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    encoding: str | None = "utf-16" if found == "UTF-16" else None
    if found is None and expected is None and head.count(0) * 3 > len(head) > 3:
        encoding = _utf16_without_mark(head)
        found = "UTF-16" if encoding else _ZEROS
    if found == expected or not head:
        return
    if expected is None:
        text = f"the file is {found}, not UTF-8 text"
        damaged = "copy it again" if found == _ZEROS else "give it the suffix of what it is, or convert it"
        fix = reencode(encoding) if encoding else damaged
        raise FormatError(RowProblem("bad_encoding", text, fix=fix))
    text = f"the file is {found}, not {expected}" if found else f"the file is not {expected}, as its name says"
    raise FormatError(RowProblem("bad_encoding", text, fix="give it the suffix of what it is, or write it again"))


def _utf16_without_mark(head: bytes) -> str | None:
    """Which UTF-16 it is by where the zeros stand: before each Latin letter, or after it. None: neither."""
    before, after = head[::2].count(0), head[1::2].count(0)
    if min(before, after) * 10 > max(before, after):
        return None
    return "utf-16be" if before > after else "utf-16le"


def _bounded(pieces: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    """Pass unpacked pieces on while they stand in proportion to what was read: (bytes read so far, piece)."""
    out = 0
    for read, piece in pieces:
        out += len(piece)
        check_ratio(read, out, "drop the file unpacked")
        yield piece


def check_ratio(read: int, out: int, fix: str) -> None:
    """Refuse bytes that swelled out of proportion to the bytes read. Raises FormatError."""
    if out > _FREE_BYTES and out > _MAX_RATIO * read:
        message = f"unpacked more than {_MAX_RATIO} times its size: an archive bomb?"
        raise FormatError(RowProblem("too_large", message, fix=fix))


def gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack gzip, several members too. Raises FormatError for a damaged or cut archive."""
    return _bounded(_gunzip(chunks))


def _gunzip(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    machine, read, fresh = zlib.decompressobj(31), 0, True
    try:
        for chunk in chunks:
            read += len(chunk)
            data = chunk
            while data:
                if machine.eof:
                    data = data.lstrip(b"\0")  # padding between members and behind the last, as gzip(1) takes it
                    if not data:
                        break
                    machine, fresh = zlib.decompressobj(31), True
                piece = machine.decompress(data, CHUNK_BYTES)
                fresh = False
                data = machine.unused_data if machine.eof else machine.unconsumed_tail
                yield read, piece
        while not machine.eof and (piece := machine.decompress(machine.unconsumed_tail, CHUNK_BYTES)):
            yield read, piece
    except zlib.error as error:
        raise FormatError(RowProblem("bad_encoding", f"damaged gzip: {error}", fix="pack it again")) from error
    if not machine.eof and not fresh:
        raise FormatError(RowProblem("bad_encoding", "the gzip is incomplete: was the transfer cut?", fix=_COPY))


def unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack Zstandard. Raises FormatError for a damaged or cut archive."""
    return _bounded(_unzstd(chunks))


class _ChunkFile:
    """A file-like view of chunks, for the library."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.read_bytes = 0

    def read(self, _size: int = -1) -> bytes:
        chunk = next(self._chunks, b"")
        self.read_bytes += len(chunk)
        return chunk


def _unzstd(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    source = _ChunkFile(chunks)
    machine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj(read_across_frames=False)
    fresh = True
    try:
        while chunk := source.read():
            data = chunk
            while data:
                if machine.eof:
                    maker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
                    machine = maker.decompressobj(read_across_frames=False)
                part, data = data[:512], data[512:]  # so that one call cannot swell without bound
                fresh = False
                yield source.read_bytes, machine.decompress(part)
                data = machine.unused_data + data if machine.eof else data
    except zstandard.ZstdError as error:
        raise FormatError(RowProblem("bad_encoding", f"damaged zstd: {error}", fix="pack it again")) from error
    if not machine.eof and not fresh:
        raise FormatError(RowProblem("bad_encoding", "the zstd file is incomplete: was the transfer cut?", fix=_COPY))
