"""JSON Lines, strict and streaming (arrow: intake).

Reads    one file, front to back, in chunks of 112 KiB     Writes   nothing
Format   one JSON object a line, split at LF only; BOM, CRLF, blank lines and a missing last line end are forgiven
Units    columns and lines count from 1, rows from 0     Errors   OSError of the disk; what the file holds never raises
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.formats.bytes_in import Leap, Unpack, file_chunks
from core.formats.rows import MAX_ROW_BYTES, Batch, Notes, RowProblem, Value
from core.formats.strict_json import INCOMPLETE, MID_CHARACTER, UNCLOSED, parse_row, parse_rows

_FEW = 4  # lines of a doubtful block that are looked at one by one
_BLANKS = b" \t\r"
_RETURN, _LINE_FEED, _OPEN, _CLOSE = ord("\r"), ord("\n"), ord("{"), ord("}")
_BOM = b"\xef\xbb\xbf"
_TOO_LONG = RowProblem(
    "too_large", f"a line over {MAX_ROW_BYTES >> 20} MiB", fix="split the row, or check that lines end in LF"
)


class JsonlReader:
    """A JSON Lines file as rows."""

    def __init__(self, path: Path, unpack: Unpack | None = None) -> None:
        self._path = path
        self._unpack = unpack
        self.notes = Notes()

    def _chunks(self, notes: Notes | None, leap: Leap | None = None) -> Iterator[bytes]:
        """The text, piece by piece; identity and size are those of the file as it lies there."""
        chunks = file_chunks(self._path, notes, leap=leap)
        return chunks if self._unpack is None else self._unpack(chunks)

    def batches(self, leap: Leap | None = None) -> Iterator[Batch]:
        """Read all rows, but those of a leap (of a file that is not packed)."""
        self.notes = notes = Notes()
        for first_line, block in self._blocks(self._chunks(notes, leap), notes, leap):
            count = _plain_lines(block) if block is not None else 0
            if block is not None and count:
                batch = Batch.unparsed(notes.rows, range(first_line, first_line + count), block, _parse_plain)
            else:
                batch = self._batch(first_line, block, notes)
            notes.rows += len(batch.lines)
            if batch.lines:
                yield batch

    def plain_batches(self, start: int) -> Iterator[Batch]:
        """The rows from `start`, where a line begins, as far as they are plain; rows and lines count from there."""
        rows = 0
        for _, block in self._blocks(file_chunks(self._path, start=start), None, begun=True):
            count = _plain_lines(block) if block is not None else 0
            if block is None or not count:
                return
            yield Batch.unparsed(rows, range(rows, rows + count), block, _parse_plain)
            rows += count

    def _batch(self, first_line: int, block: bytes | None, notes: Notes) -> Batch:
        if block is None:
            return Batch(notes.rows, [first_line], [_TOO_LONG])
        lines: list[int] = []
        raws: list[bytes] = []
        for line, raw in enumerate(block.removesuffix(b"\n").split(b"\n"), first_line):
            if _is_blank(raw):
                notes.forgive("blank_line", line)
                continue
            if raw[-1] == _RETURN:
                notes.forgive("crlf", line)
            lines.append(line)
            raws.append(raw)
        values = _values(raws)
        if lines and "no_final_newline" in notes.counts:
            values[-1] = _explain_cut(values[-1], lines[-1])
        return Batch(notes.rows, lines, values)

    def some(self, wanted: Collection[int]) -> Iterator[tuple[int, int, Value]]:
        if not wanted:
            return
        row, todo = 0, np.array(sorted(wanted))
        for first_line, block in self._blocks(self._chunks(None), None):
            count = _plain_lines(block) if block is not None else 0
            if block is not None and count:
                here = todo[slice(*np.searchsorted(todo, (row, row + count)))] - row
                raws = block.split(b"\n") if len(here) else []
                for place in here.tolist():
                    yield row + place, first_line + place, parse_row(raws[place])
                row += count
                continue
            lines = [None] if block is None else block.removesuffix(b"\n").split(b"\n")
            for line, raw in enumerate(lines, first_line):
                if raw is not None and _is_blank(raw):
                    continue
                if row in wanted:
                    yield row, line, _TOO_LONG if raw is None else parse_row(raw.rstrip(b"\r"))
                row += 1

    def line_bound(self) -> int:
        return 1 + sum(int(np.count_nonzero(_bytes_of(chunk) == _LINE_FEED)) for chunk in self._chunks(None))

    @staticmethod
    def _blocks(
        chunks: Iterable[bytes], notes: Notes | None, leap: Leap | None = None, begun: bool = False
    ) -> Iterator[tuple[int, bytes | None]]:
        """Give (number of the first line, whole lines with their LF); None for one line over the cap, not kept.

        Only the last line of the file may lack its LF.
        """
        number, rest, overlong = 1, b"", False
        for chunk in chunks:
            if not chunk and leap is not None and notes is not None:
                rows = leap.take(notes.rows, number)
                number, notes.rows = number + rows, notes.rows + rows
            if not begun and chunk.startswith(_BOM):
                if notes is not None:
                    notes.forgive("bom", 1)
                chunk = chunk.removeprefix(_BOM)
            begun = begun or chunk != b""
            cut = chunk.rfind(b"\n") + 1
            if cut:
                end = chunk.find(b"\n") + 1
                if overlong or len(rest) + end - 1 > MAX_ROW_BYTES:
                    yield number, None
                    number, rest, overlong, chunk, cut = number + 1, b"", False, chunk[end:], cut - end
                if cut:
                    block = rest + chunk[:cut]
                    yield number, block
                    number += int(np.count_nonzero(_bytes_of(block) == _LINE_FEED))
                rest = chunk[cut:]
            elif not overlong:
                rest += chunk
            if len(rest) > MAX_ROW_BYTES:
                rest, overlong = b"", True
        if rest or overlong:
            if notes is not None:
                notes.forgive("no_final_newline", number)
            yield number, None if overlong else rest


def _bytes_of(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, dtype=np.uint8)


def _is_blank(raw: bytes) -> bool:
    return not raw or (raw[0] in _BLANKS and not raw.strip(_BLANKS))


def _plain_lines(block: bytes) -> int:
    """How many lines a block has when each begins with { and ends with } and LF; 0 when one does not."""
    chars = _bytes_of(block)
    ends = np.flatnonzero(chars == _LINE_FEED)
    if not len(ends) or chars[0] != _OPEN or ends[-1] != len(chars) - 1:
        return 0
    whole = (chars[ends - 1] == _CLOSE).all() and (chars[ends[:-1] + 1] == _OPEN).all()
    return len(ends) if whole else 0


def _parse_plain(block: bytes) -> list[Value]:
    return _values(block[:-1].split(b"\n"))


def _explain_cut(value: Value, line: int) -> Value:
    """A last line that stops in the middle is most likely a broken transfer: say so."""
    if not isinstance(value, RowProblem) or not value.message.endswith((INCOMPLETE, UNCLOSED, MID_CHARACTER)):
        return value
    cut = f"line {line} is incomplete: was the transfer cut? ({value.message})"
    return replace(value, message=cut, fix="copy the whole file again")


def _values(raws: list[bytes]) -> list[Value]:
    """Parse lines together as long as they are plainly good; halve the block where one is not."""
    if not raws:
        return []
    values = parse_rows(raws)
    if values is not None:
        return [*values]
    if len(raws) <= _FEW:
        return [_with_text(parse_row(raw.rstrip(b"\r")), raw) for raw in raws]
    middle = len(raws) // 2
    return _values(raws[:middle]) + _values(raws[middle:])


def _with_text(value: Value, raw: bytes) -> Value:
    """A refused line keeps its text, so that it can be set aside."""
    return replace(value, text=raw.decode(errors="replace")) if isinstance(value, RowProblem) else value
