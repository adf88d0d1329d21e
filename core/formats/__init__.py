"""Readers of dropped files: suffix -> rows, streaming and bounded (arrow: intake)."""

from pathlib import Path

from core.errors import DataError
from core.formats.jsonl import JsonlReader
from core.formats.rows import Batch, Notes, RowProblem, RowReader

SUFFIXES = (".jsonl",)

__all__ = ["SUFFIXES", "Batch", "JsonlReader", "Notes", "RowProblem", "RowReader", "open_rows"]


def open_rows(path: Path) -> RowReader:
    """Choose the reader of a file by its name.

    Raises:
        DataError: no reader knows the suffix.
    """
    if path.name.lower().endswith(SUFFIXES):
        return JsonlReader(path)
    raise DataError(f"no reader for {path.suffix or 'a name without suffix'}", fix=f"use {', '.join(SUFFIXES)}")
