"""JSON Lines, strict and streaming (arrow: intake).

Reads    one file, front to back, in chunks of 64 KiB     Writes   nothing
Format   one JSON object a line, split at LF only; BOM, CRLF, blank lines and a missing last line end are forgiven
Units    columns and lines count from 1, rows from 0     Errors   OSError of the disk; what the file holds never raises
"""

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from core.formats.rows import MAX_ROW_BYTES, Batch, Notes, RowProblem, Value
from core.formats.strict_json import parse_row, parse_rows

_CHUNK_BYTES = 1 << 16  # blocks of this size stay in the cache of one core
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_TOO_LONG = RowProblem(
    "too_large", f"a line over {MAX_ROW_BYTES >> 20} MiB", fix="split the row, or check that lines end in LF"
)


class JsonlReader:
    """A JSON Lines file as rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.notes = Notes()

    def batches(self) -> Iterator[Batch]:
        self.notes = notes = Notes()
        for first_line, block in self._blocks(notes):
            batch = self._plain(first_line, block, notes) or self._one_by_one(first_line, block, notes)
            notes.rows += len(batch.lines)
            if batch.lines:
                yield batch

    @staticmethod
    def _plain(first_line: int, block: list[bytes | None], notes: Notes) -> Batch | None:
        """A block without anything to look at closely."""
        raws = [raw for raw in block if raw]
        values = parse_rows(raws) if len(raws) == len(block) else None
        if values is None:
            return None
        carriages = sum(raw.endswith(b"\r") for raw in raws)
        if carriages:
            notes.forgive("crlf", first_line, carriages)
        return Batch(notes.rows, list(range(first_line, first_line + len(raws))), [*values])

    def _one_by_one(self, first_line: int, block: list[bytes | None], notes: Notes) -> Batch:
        batch = Batch(notes.rows)
        for line, raw in enumerate(block, first_line):
            text = raw.rstrip(b"\r") if raw is not None else None
            if text is not None and not text.strip(b" \t\r"):
                notes.forgive("blank_line", line)
                continue
            if text is not None and text != raw:
                notes.forgive("crlf", line)
            batch.lines.append(line)
            batch.values.append(_TOO_LONG if text is None else _with_text(parse_row(text), text))
        if batch.lines and "no_final_newline" in notes.counts:
            self._explain_cut(batch)
        return batch

    def some(self, wanted: Collection[int]) -> Iterator[tuple[int, int, Value]]:
        row = 0
        for first_line, block in self._blocks(Notes()):
            for line, raw in enumerate(block, first_line):
                if raw is not None and not raw.strip(b" \t\r"):
                    continue
                if row in wanted:
                    yield row, line, _TOO_LONG if raw is None else parse_row(raw.rstrip(b"\r"))
                row += 1

    def line_bound(self) -> int:
        with self._path.open("rb", buffering=0) as file:
            return 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))

    def _blocks(self, notes: Notes) -> Iterator[tuple[int, list[bytes | None]]]:
        """Give (number of the first line, lines without LF); None for a line over the cap, whose bytes are not kept."""
        digest = hashlib.sha256()
        number, rest, overlong = 1, b"", False
        with self._path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                if notes.size_bytes == 0 and chunk.startswith(_BOM):
                    notes.forgive("bom", 1)
                    chunk = chunk.removeprefix(_BOM)
                    notes.size_bytes = len(_BOM)
                notes.size_bytes += len(chunk)
                head, *lines = chunk.split(b"\n")
                rest = b"" if overlong else rest + head
                if lines:
                    first = None if overlong or len(rest) > MAX_ROW_BYTES else rest
                    yield number, [first, *lines[:-1]]
                    number, rest, overlong = number + len(lines), lines[-1], False
                if len(rest) > MAX_ROW_BYTES:
                    rest, overlong = b"", True
        notes.sha256 = digest.hexdigest()
        if rest or overlong:
            notes.forgive("no_final_newline", number)
            yield number, [None if overlong else rest]

    def _explain_cut(self, batch: Batch) -> None:
        """A last line that stops in the middle is most likely a broken transfer: say so."""
        last = batch.values[-1]
        if "no_final_newline" in self.notes.counts and isinstance(last, RowProblem) and last.code == "bad_json":
            cut = f"line {batch.lines[-1]} is incomplete: was the transfer cut? ({last.message})"
            batch.values[-1] = replace(last, message=cut, fix="copy the whole file again")


def _with_text(value: Value, raw: bytes) -> Value:
    """A refused line keeps its text, so that it can be set aside."""
    return replace(value, text=raw.decode(errors="replace")) if isinstance(value, RowProblem) else value


def looks_wide(path: Path) -> str | None:
    """Name the encoding when a file begins like UTF-16; None otherwise. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(256)
    if head[:2] in _WIDE_BOMS:
        return _WIDE_BOMS[head[:2]]
    zeros = head.count(0)
    return "UTF-16" if zeros * 3 > len(head) > 3 and os.fsencode("{") in head else None
