"""The second half of a large file, read by another process at the same time (arrow: intake, level quick).

The other process is a fork that looks at blocks of rows exactly as this one does, and stops at the first that is not
plainly good. What it says spares this process that part of the file; all else, and all of it should it fail, is read
here as ever, so that verdicts and their words are the same with and without it.

Reads    the data file         Writes   a pipe
Effects  one child process, which ends with the pass; the file's own SHA-256 is made here, over every byte
"""

import errno
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from core.formats import JsonlReader
from core.formats.rows import MAX_ROW_BYTES
from core.validation.census import Census
from core.validation.layer_one import LayerOne
from core.validation.plan import Plan
from core.validation.specs import DatasetSpec

_LEAST_BYTES = 16 << 20  # below that, a fork costs more than it spares
_FIRST_SHARE = 0.46  # this process finds out the spec meanwhile, and hashes all of the file
_PATIENCE_S = 5.0
_MOST_ROWS = 1 << 19  # so that what is said stays below 20 MB


class _Found(msgspec.Struct):
    """What the other process says: of so many rows and bytes, all hashes; row numbers count from its first row."""

    spec: str
    rows: int
    size: int
    digests: bytes
    large: list[int]
    texts: dict[int, bytes]


class SecondHalf:
    """Where the other process began, and later how far it came; see `core.formats.JsonlReader.batches`."""

    def __init__(self, start: int, pipe: int) -> None:
        self.start = start
        self.bytes = 0
        self._pipe = pipe
        self._began_s = time.monotonic()
        self._for: tuple[LayerOne, Census] | None = None

    def known_to(self, layer: LayerOne, census: Census) -> "SecondHalf":
        """Who is to be told what was found."""
        self._for = layer, census
        return self

    def take(self, row: int, line: int) -> int:
        """Tell what was found. Returns of how many rows; `bytes` says how much of the file it was."""
        try:
            found = msgspec.msgpack.decode(self._said(), type=_Found)
        except msgspec.DecodeError:  # it failed, fell silent or was killed while it spoke: the rows are read here
            return 0
        if self._for is None or found.spec != self._for[0].spec.name or self._for[0].columns:
            return 0  # it looked at them by another spec
        layer, census = self._for
        census.add_hashed(row, line, found.digests, found.large, found.texts)
        layer.parsed += found.rows
        self.bytes = found.size
        return found.rows

    def _said(self) -> bytes:
        """All that it says. A process that was stopped is waited for about as long as it should have needed."""
        patience_s = _PATIENCE_S + 2 * (time.monotonic() - self._began_s)
        parts: list[bytes] = []
        while select.select([self._pipe], [], [], patience_s)[0]:
            part = os.read(self._pipe, 1 << 20)
            if not part:
                break
            parts.append(part)
        return b"".join(parts)


@contextmanager
def second_half(path: Path, plan: Plan, specs: Sequence[DatasetSpec]) -> Iterator[SecondHalf | None]:
    """Have the second half of a file read from now on; None where that does not pay.

    Args:
        specs: one of these it will be; the first that fits is taken.

    Raises:
        OSError: the disk fails, or the file changed meanwhile: two have read it, perhaps not the same.
    """
    before = _state(path)
    start = _start(path) if plan.level == "quick" else 0
    if not start:
        yield None
        return
    read_end, write_end = os.pipe()
    try:
        child = os.fork()
    except OSError:  # no process to be had: it goes without
        os.close(read_end)
        os.close(write_end)
        yield None
        return
    if child == 0:
        os.close(read_end)  # else the pipe would outlive whoever reads it, and this process its parent
        _run_child(path, start, plan, specs, write_end)
    os.close(write_end)
    try:
        yield SecondHalf(start, read_end)
        if _state(path) != before:
            raise OSError(errno.EBUSY, "it changed while it was read", str(path))
    finally:
        os.close(read_end)
        _end(child)


def _state(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _end(child: int) -> None:
    """Wait for it, or end it first. Where children are not waited for (SIGCHLD ignored by whoever started us), it may
    have gone by itself, and its number may be another's: so it is asked for as a child of ours only."""
    with suppress(ChildProcessError):
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _start(path: Path) -> int:
    """Where the first line of the second half begins; 0 where one process is enough."""
    size = path.stat().st_size
    if size < _LEAST_BYTES or len(os.sched_getaffinity(0)) < 2 or not path.name.lower().endswith(".jsonl"):
        return 0
    with path.open("rb") as file:
        file.seek(int(_FIRST_SHARE * size))
        line = file.readline(MAX_ROW_BYTES)
        return file.tell() if line.endswith(b"\n") and file.tell() < size else 0


def _run_child(path: Path, start: int, plan: Plan, specs: Sequence[DatasetSpec], pipe: int) -> None:
    """Read on from `start`, say what was found, and end. Whatever is raised ends it too, and then nothing is said."""
    try:
        found = _read(path, start, plan, specs)
        with os.fdopen(pipe, "wb") as file:
            file.write(msgspec.msgpack.encode(found))
    finally:
        os._exit(0)


def _read(path: Path, start: int, plan: Plan, specs: Sequence[DatasetSpec]) -> _Found:
    layers = [LayerOne(spec, {}, plan.suites, grams=False) for spec in specs]
    census, digests = Census(plan), list[bytes]()
    found = _Found("", 0, 0, b"", [], {})
    for batch in JsonlReader(path).plain_batches(start):
        layer, texts = next(((one, texts) for one in layers if (texts := one.canonical(batch))), (None, None))
        if layer is None or texts is None or found.rows >= _MOST_ROWS:
            break
        layers, found.spec = [layer], layer.spec.name
        digests.append(census.add(range(found.rows, found.rows + len(texts)), batch.lines, texts))
        found.rows += len(texts)
        found.size += len(batch.text or b"")
    found.digests = b"".join(digests)
    found.large = census.large.tolist()
    found.texts = {number: text for number, (_, text) in census.sample.kept().items()}
    return found
