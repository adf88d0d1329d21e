"""What readers of records share: batches of bounded size from (line, value) pairs (arrow: intake)."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path

from core.formats.rows import Batch, Notes, Value

_BATCH_ROWS, _BATCH_BYTES = 256, 1 << 20  # whichever comes first


class RecordReader(ABC):
    """A reader whose rows come one by one from `_records`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.notes = Notes()

    @abstractmethod
    def _records(self, notes: Notes) -> Iterator[tuple[int, Value, int]]:
        """Give (line or record number, value, about how many bytes it takes) and fill in the notes."""

    def line_bound(self) -> int:
        """Every row takes a byte or more; packed columns may take less, hence the factor."""
        return self._path.stat().st_size * 1000 + 1

    def batches(self) -> Iterator[Batch]:
        self.notes = notes = Notes()
        lines: list[int] = []
        values: list[Value] = []
        held = 0
        for line, value, size in self._records(notes):
            held += size
            lines.append(line)
            values.append(value)
            notes.rows += 1
            if len(lines) >= _BATCH_ROWS or held >= _BATCH_BYTES:
                yield Batch(notes.rows - len(lines), lines, values)
                lines, values, held = [], [], 0
        if lines:
            yield Batch(notes.rows - len(lines), lines, values)

    def some(self, wanted: Collection[int]) -> Iterator[tuple[int, int, Value]]:
        for row, (line, value, _) in enumerate(self._records(Notes())):
            if row in wanted:
                yield row, line, value
