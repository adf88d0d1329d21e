"""Rows from Parquet, Arrow and Feather (arrow: intake); needs the extra `formats` (pyarrow).

Errors   MissingToolError with the pip line; FormatError for a damaged file; RowProblem for what JSON cannot hold
Effects  while pyarrow works, this process may take 128 MiB more, not more; rows come 1 MiB at a time, or one
"""

import importlib
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar  # pyarrow has no types

import orjson

from core.errors import MissingToolError
from core.formats.bytes_in import check_ratio, file_chunks
from core.formats.decoded import pieces
from core.formats.memory import memory_bound
from core.formats.records import RecordReader
from core.formats.rows import MAX_ROW_BYTES, FormatError, Notes, RowProblem, Value
from core.formats.strict_json import parse_row

_T = TypeVar("_T")
_BATCH_ROWS = 256
_READ_BYTES = 256 << 10  # of a column at a time: a row group may be as large as the file
_MOST_BYTES = 128 << 20  # that pyarrow may hold: a page, or a record batch packed and unpacked; 300 MB are for all
_PIECE_BYTES = 1 << 20  # of rows at a time: as Python values they take several times as much
_NO_MEMORY = ("bad_alloc", "Failed to launch worker thread")  # what else it says for want of it
_WORDS = "the file cannot be read as {}: {}"
_AS_LINES = "write the rows as JSON lines"
_ROW_TOO_LARGE = RowProblem("too_large", f"a row over {MAX_ROW_BYTES >> 20} MiB", fix="split the row")


def _library(name: str) -> Any:  # pyarrow has no types
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # the others take address space by the gigabyte
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingToolError(
            "this format needs pyarrow", fix="pip install 'dropforge[formats]' (or: pip install pyarrow)"
        ) from error


class _Swollen(Exception):
    """pyarrow asked for more memory than it may have."""


class ParquetReader(RecordReader):
    """A Parquet file."""

    kind = "Parquet"
    _smaller = "smaller row groups (pyarrow.parquet.write_table(table, NAME, row_group_size=16))"

    def _records(self, notes: Notes) -> Iterator[tuple[int, Value, int]]:
        for _chunk in file_chunks(self._path, notes):
            pass  # the file's identity; pyarrow reads it in another order
        failure = _library("pyarrow").ArrowException
        record = unpacked = 0
        try:
            for batch in self._open():
                _require_names_once(batch.schema.names)
                batch.validate(full=True)  # offsets of a damaged file point anywhere
                for piece, size in pieces(batch, _PIECE_BYTES):
                    unpacked += size
                    check_ratio(self._path.stat().st_size, unpacked, _AS_LINES)
                    rows = piece.to_pylist() if size <= MAX_ROW_BYTES else [None]
                    for row in rows:
                        record += 1
                        yield record, _as_json(row) if row is not None else _ROW_TOO_LARGE, size // len(rows)
                batch = piece = rows = None  # what is held while the next is read counts with it
        except _Swollen as error:
            raise FormatError(self._swollen(str(error))) from error
        except (failure, OSError, ValueError) as error:
            words = _WORDS.format(self.kind, str(error).splitlines()[0][:200] if str(error) else "damaged")
            raise FormatError(RowProblem("bad_encoding", words, fix="write the file again")) from error

    def _within(self, step: Callable[[], _T]) -> _T:
        """One call of pyarrow, with no more memory than it may have. Raises _Swollen."""
        try:
            with memory_bound(_MOST_BYTES - _library("pyarrow").total_allocated_bytes()):
                return step()
        except MemoryError as error:
            raise _Swollen from error
        except (_library("pyarrow").ArrowException, OSError) as error:
            if any(words in str(error) for words in _NO_MEMORY):
                raise _Swollen from error
            raise

    def _swollen(self, where: str) -> RowProblem:
        message = f"{where or 'the description of its columns'} needs more than {_MOST_BYTES >> 20} MiB to be read"
        return RowProblem("too_large", message, fix=f"write {self._smaller}, or {_AS_LINES[6:]}")

    def _open(self) -> Iterator[Any]:  # pyarrow record batches
        """All record batches. Raises _Swollen, naming the row group."""
        make = partial(_library("pyarrow.parquet").ParquetFile, self._path, memory_map=False, pre_buffer=False)
        with self._within(partial(make, buffer_size=_READ_BYTES)) as file:
            meta = file.metadata
            declared = sum(_declared_bytes(meta.row_group(number)) for number in range(meta.num_row_groups))
            check_ratio(self._path.stat().st_size, declared, _AS_LINES)
            for number in range(meta.num_row_groups):
                yield from self._row_group(file, number)

    def _row_group(self, file: Any, number: int) -> Iterator[Any]:
        """Batches of one row group, of fewer rows where rows are large; of one where the footer does not say so."""
        group = file.metadata.row_group(number)
        fitting = _PIECE_BYTES * group.num_rows // max(group.total_byte_size, 1)
        given = 0
        for size in sorted({max(1, min(_BATCH_ROWS, fitting)), 1}, reverse=True):
            batches = file.iter_batches(batch_size=size, row_groups=[number], use_threads=False)
            seen = 0
            try:
                while (batch := self._within(partial(next, batches, None))) is not None:
                    seen += batch.num_rows
                    if seen > given:
                        given = seen
                        yield batch
                return
            except _Swollen as error:
                if size == 1:
                    raise _Swollen(f"row group {number + 1}") from error

    def line_bound(self) -> int:
        """Rows are counted in the footer: no pass over the data."""
        try:
            return int(self._within(partial(_library("pyarrow.parquet").read_metadata, self._path)).num_rows) + 1
        except (_Swollen, _library("pyarrow").ArrowException, OSError, ValueError):
            return 1  # `batches` says what is wrong


def _declared_bytes(group: Any) -> int:  # a row group's part of the footer
    """Bytes of the pages unpacked; a value that is repeated takes none there, and one at least when read."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(max(column.total_uncompressed_size, column.num_values) for column in columns)


class ArrowReader(ParquetReader):
    """An Arrow IPC file (Feather is one) or stream."""

    kind = "Arrow"
    _smaller = "smaller record batches (pyarrow.feather.write_feather(table, NAME, chunksize=1000))"

    def _open(self) -> Iterator[Any]:  # pyarrow record batches
        arrow, ipc = _library("pyarrow"), _library("pyarrow.ipc")
        alone = ipc.IpcReadOptions(use_threads=False)
        with arrow.OSFile(str(self._path), "rb") as source:
            if self._path.stat().st_size and self._magic() == b"ARROW1":
                file = self._within(partial(ipc.open_file, source, options=alone))
                numbers = range(file.num_record_batches)
                batches: Iterator[Callable[[], Any]] = (partial(file.get_batch, number) for number in numbers)
            else:
                stream = self._within(partial(ipc.open_stream, source, options=alone))
                batches = repeat(partial(next, stream, None))
            for number, read in enumerate(batches, 1):
                try:
                    batch = self._within(read)
                except _Swollen as error:
                    raise _Swollen(f"record batch {number}") from error
                if batch is None:
                    return
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS)
                del batch  # before the next is read

    def _magic(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(6)

    def line_bound(self) -> int:
        return self._path.stat().st_size * 1000 + 1


def _require_names_once(names: list[str]) -> None:
    """Of two columns with one name a row would keep the last. Raises FormatError."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FormatError(RowProblem("bad_json", f"column {twice!r} stands twice", fix="name every column once"))


def _as_json(row: dict[str, Any]) -> Value:  # any column type
    """A row as JSON has it; columns that are null are left out, as they would be in JSON Lines."""
    present = {name: value for name, value in row.items() if value is not None}
    try:
        text = orjson.dumps(present, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS)
        if b"null" in text and (place := _not_finite("$", present)):  # orjson writes null for NaN
            return RowProblem("bad_json", "a number is NaN or infinite", None, place, "write null, or leave it out")
        return parse_row(text)
    except (TypeError, ValueError) as error:
        return RowProblem("spec_mismatch", f"a value that JSON cannot hold: {error}", fix="convert the column to text")


def _not_finite(path: str, value: object) -> str | None:
    """Where the first NaN or infinity stands in a row; None when there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, dict):
        inner = [(f"{path}.{name}", part) for name, part in value.items()]
    elif isinstance(value, list):
        inner = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    else:
        return None
    return next((place for at, part in inner if (place := _not_finite(at, part))), None)


def footer_stats(path: Path) -> dict[str, object]:
    """Rows, columns and sizes of a Parquet file from its footer alone. Raises FormatError, MissingToolError."""
    try:
        with memory_bound(_MOST_BYTES):
            meta = _library("pyarrow.parquet").read_metadata(path)
    except MemoryError as error:
        raise FormatError(ParquetReader(path)._swollen("")) from error
    except (_library("pyarrow").ArrowException, OSError, ValueError) as error:
        problem = RowProblem("bad_encoding", _WORDS.format("Parquet", error), fix="write the file again")
        raise FormatError(problem) from error
    return {"rows": meta.num_rows, "columns": meta.schema.names, "row_groups": meta.num_row_groups}
