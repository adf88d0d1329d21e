"""Rows from Parquet, Arrow and Feather (arrow: intake); needs the extra `formats` (pyarrow).

Errors   MissingToolError with the pip line; FormatError for a damaged file; RowProblem for what JSON cannot hold
Effects  none; record batches of 256 rows, memory bounded by one batch and one row group's pages
"""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # pyarrow has no types

import orjson

from core.errors import MissingToolError
from core.formats.bytes_in import file_chunks
from core.formats.records import RecordReader
from core.formats.rows import FormatError, Notes, RowProblem, Value
from core.formats.strict_json import parse_row

_BATCH_ROWS = 256
_WORDS = "the file cannot be read as {}: {}"


def _library(name: str) -> Any:  # pyarrow has no types
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingToolError(
            "this format needs pyarrow", fix="pip install 'dropforge[formats]' (or: pip install pyarrow)"
        ) from error


class ParquetReader(RecordReader):
    """A Parquet file."""

    kind = "Parquet"

    def _records(self, notes: Notes) -> Iterator[tuple[int, Value]]:
        for _chunk in file_chunks(self._path, notes):
            pass  # the file's identity; pyarrow reads it in another order
        failure = _library("pyarrow").ArrowException
        try:
            record = 0
            for batch in self._open():
                _require_names_once(batch.schema.names)
                batch.validate(full=True)  # offsets of a damaged file point anywhere
                for row in batch.to_pylist():
                    record += 1
                    yield record, _as_json(row)
        except (failure, OSError, ValueError) as error:
            words = _WORDS.format(self.kind, str(error).splitlines()[0][:200] if str(error) else "damaged")
            raise FormatError(RowProblem("bad_encoding", words, fix="write the file again")) from error

    def _open(self) -> Iterator[Any]:  # pyarrow record batches
        file = _library("pyarrow.parquet").ParquetFile(self._path, memory_map=False, pre_buffer=False)
        with file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS)

    def line_bound(self) -> int:
        """Rows are counted in the footer: no pass over the data."""
        try:
            return int(_library("pyarrow.parquet").read_metadata(self._path).num_rows) + 1
        except (_library("pyarrow").ArrowException, OSError, ValueError):
            return 1  # `batches` says what is wrong


class ArrowReader(ParquetReader):
    """An Arrow IPC file (Feather is one) or stream."""

    kind = "Arrow"

    def _open(self) -> Iterator[Any]:  # pyarrow record batches
        arrow, ipc = _library("pyarrow"), _library("pyarrow.ipc")
        with arrow.OSFile(str(self._path), "rb") as source:
            if self._path.stat().st_size and self._magic() == b"ARROW1":
                file = ipc.open_file(source)
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
            else:
                batches = iter(ipc.open_stream(source))
            for batch in batches:
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS)

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
        meta = _library("pyarrow.parquet").read_metadata(path)
    except (_library("pyarrow").ArrowException, OSError, ValueError) as error:
        raise FormatError(RowProblem("bad_encoding", _WORDS.format("Parquet", error))) from error
    return {"rows": meta.num_rows, "columns": meta.schema.names, "row_groups": meta.num_row_groups}
