"""JSON Lines, strict and streaming (arrow: intake).

Reads    one file, front to back, in chunks of 64 KiB     Writes   nothing
Format   one JSON object a line, split at LF only; BOM, CRLF, blank lines and a missing last line end are forgiven
Units    columns and lines count from 1, rows from 0     Errors   OSError of the disk; what the file holds never raises
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from core.formats.bytes_in import Unpack, file_chunks
from core.formats.rows import MAX_ROW_BYTES, Batch, Notes, RowProblem, Value
from core.formats.strict_json import parse_row, parse_rows

_FEW = 4  # lines of a doubtful block that are looked at one by one
_BLANKS, _RETURN = b" \t\r", ord("\r")
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

    def _chunks(self, notes: Notes | None) -> Iterator[bytes]:
        """The text, piece by piece; identity and size are those of the file as it lies there."""
        chunks = file_chunks(self._path, notes)
        return chunks if self._unpack is None else self._unpack(chunks)

    def batches(self) -> Iterator[Batch]:
        self.notes = notes = Notes()
        for first_line, block in self._blocks(notes):
            batch = self._batch(first_line, block, notes)
            notes.rows += len(batch.lines)
            if batch.lines:
                yield batch

    def _batch(self, first_line: int, block: list[bytes | None], notes: Notes) -> Batch:
        batch = Batch(notes.rows)
        raws: list[bytes] = []
        for line, raw in enumerate(block, first_line):
            if raw is None:
                batch.values += _values(raws)
                batch.values.append(_TOO_LONG)
                raws = []
            elif not raw or (raw[0] in _BLANKS and not raw.strip(b" \t\r")):
                notes.forgive("blank_line", line)
                continue
            else:
                raws.append(raw)
                if raw[-1] == _RETURN:
                    notes.forgive("crlf", line)
            batch.lines.append(line)
        batch.values += _values(raws)
        if batch.lines and "no_final_newline" in notes.counts:
            self._explain_cut(batch)
        return batch

    def some(self, wanted: Collection[int]) -> Iterator[tuple[int, int, Value]]:
        row = 0
        for first_line, block in self._blocks(None):
            for line, raw in enumerate(block, first_line):
                if raw is not None and not raw.strip(b" \t\r"):
                    continue
                if row in wanted:
                    yield row, line, _TOO_LONG if raw is None else parse_row(raw.rstrip(b"\r"))
                row += 1

    def line_bound(self) -> int:
        return 1 + sum(chunk.count(b"\n") for chunk in self._chunks(None))

    def _blocks(self, notes: Notes | None) -> Iterator[tuple[int, list[bytes | None]]]:
        """Give (number of the first line, lines without LF); None for a line over the cap, whose bytes are not kept."""
        number, rest, overlong, begun = 1, b"", False, False
        for chunk in self._chunks(notes):
            if not begun and chunk.startswith(_BOM):
                if notes is not None:
                    notes.forgive("bom", 1)
                chunk = chunk.removeprefix(_BOM)
            begun = True
            head, *lines = chunk.split(b"\n")
            rest = b"" if overlong else rest + head
            if lines:
                first = None if overlong or len(rest) > MAX_ROW_BYTES else rest
                yield number, [first, *lines[:-1]]
                number, rest, overlong = number + len(lines), lines[-1], False
            if len(rest) > MAX_ROW_BYTES:
                rest, overlong = b"", True
        if rest or overlong:
            if notes is not None:
                notes.forgive("no_final_newline", number)
            yield number, [None if overlong else rest]

    def _explain_cut(self, batch: Batch) -> None:
        """A last line that stops in the middle is most likely a broken transfer: say so."""
        last = batch.values[-1]
        if "no_final_newline" in self.notes.counts and isinstance(last, RowProblem) and last.code == "bad_json":
            cut = f"line {batch.lines[-1]} is incomplete: was the transfer cut? ({last.message})"
            batch.values[-1] = replace(last, message=cut, fix="copy the whole file again")


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
