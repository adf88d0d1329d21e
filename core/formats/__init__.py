"""Readers of dropped files: suffix -> rows, streaming and bounded (arrow: intake)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.formats.bytes_in import check_magic, gunzip, unzstd
from core.formats.columns import ArrowReader, ParquetReader, footer_stats
from core.formats.jsonl import JsonlReader
from core.formats.rows import Batch, FormatError, Notes, RowProblem, RowReader
from core.formats.text_records import CsvReader, JsonArrayReader, TextReader
from core.paths import display_name

_Maker = Callable[[Path], RowReader]
# suffix -> what the first bytes must be (None: text), and the reader
_READERS: Mapping[str, tuple[str | None, _Maker]] = {
    ".jsonl": (None, JsonlReader),
    ".jsonl.gz": ("gzip", lambda path: JsonlReader(path, gunzip)),
    ".jsonl.zst": ("zstd", lambda path: JsonlReader(path, unzstd)),
    ".json": (None, JsonArrayReader),
    ".csv": (None, lambda path: CsvReader(path, ",")),
    ".tsv": (None, lambda path: CsvReader(path, "\t")),
    ".txt": (None, TextReader),
    ".parquet": ("Parquet", ParquetReader),
    ".arrow": ("Arrow", ArrowReader),
    ".feather": ("Arrow", ArrowReader),
}
SUFFIXES = tuple(_READERS)

__all__ = ["SUFFIXES", "Batch", "FormatError", "JsonlReader", "Notes", "RowProblem", "RowReader"]
__all__ += ["check_content", "file_stats", "open_rows"]


def _entry(path: Path) -> tuple[str | None, _Maker]:
    name = path.name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return _READERS[suffix]
    raise DataError(f"no reader for {path.suffix or 'a name without suffix'}", fix=f"use {', '.join(SUFFIXES)}")


def open_rows(path: Path) -> RowReader:
    """Choose the reader of a file by its name.

    Raises:
        DataError: no reader knows the suffix.
    """
    return _entry(path)[1](path)


def check_content(path: Path) -> None:
    """Suffix and content must agree. Raises FormatError, OSError."""
    expected, _ = _entry(path)
    if expected == "Arrow" and path.name.lower().endswith(".arrow"):
        return  # a stream has no magic; the reader says what is wrong
    check_magic(path, expected)


def file_stats(path: Path) -> dict[str, Any]:  # facts are JSON
    """What can be said of a file without reading all of it: size, and rows and columns of a Parquet file.

    Raises:
        DataError: no reader knows the suffix, or the file is damaged.
    """
    check_content(path)
    size: dict[str, Any] = {"file": display_name(path.name), "bytes": path.stat().st_size}
    if path.name.lower().endswith(".parquet"):
        return size | footer_stats(path)
    first = next(iter(open_rows(path).batches()), Batch(0))
    row = next((value for value in first.values if not isinstance(value, RowProblem)), {})
    return size | {"rows": None, "columns": list(row)}
