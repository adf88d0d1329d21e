"""What readers of records share: batches of bounded size from (line, value) pairs (arrow: intake)."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path

from core.formats.rows import Batch, Notes, Value

_BATCH_ROWS = 256


class RecordReader(ABC):
    """A reader whose rows come one by one from `_records`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.notes = Notes()

    @abstractmethod
    def _records(self, notes: Notes) -> Iterator[tuple[int, Value]]:
        """Give (line or record number, value) and fill in the notes."""

    def line_bound(self) -> int:
        """Every row takes a byte or more; packed columns may take less, hence the factor."""
        return self._path.stat().st_size * 1000 + 1

    def batches(self) -> Iterator[Batch]:
        self.notes = notes = Notes()
        lines: list[int] = []
        values: list[Value] = []
        for line, value in self._records(notes):
            lines.append(line)
            values.append(value)
            notes.rows += 1
            if len(lines) >= _BATCH_ROWS:
                yield Batch(notes.rows - len(lines), lines, values)
                lines, values = [], []
        if lines:
            yield Batch(notes.rows - len(lines), lines, values)

    def some(self, wanted: Collection[int]) -> Iterator[tuple[int, int, Value]]:
        for row, (line, value) in enumerate(self._records(Notes())):
            if row in wanted:
                yield row, line, value
