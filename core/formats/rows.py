"""What every format hands to the gates: batches of rows, or of reasons why one cannot be read (arrow: intake)."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol  # a row is a JSON object of any shape

from core.errors import DataError

MAX_ROW_BYTES = 8 << 20  # one row; a longer line is refused while it is streamed
KEPT_LINES = 10  # line numbers kept as examples


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row is refused: a code of the contract, one sentence, and where."""

    code: str
    message: str
    column: int | None = None
    field: str | None = None
    fix: str | None = None
    text: str | None = None  # the row as it stands, where it could not be read


Value = dict[str, Any] | RowProblem


def reencode(encoding: str) -> str:
    """The fix for a file that is text, but not UTF-8."""
    return f"save it as UTF-8: iconv -f {encoding} -t utf-8 NAME > NEW"


LATIN1_FIX = f"{reencode('latin1')} (if it is Latin-1)"  # any bytes are Latin-1: whether these are, a person must say


class Batch:
    """Consecutive rows, parsed when their values are first asked for.

    Attributes:
        first: the 0-based number of the first row.
        lines: 1-based line numbers of the rows.
        text: the rows as JSON, each closed by LF, begun by { and ended by }, not parsed yet; None where that is not so.
    """

    __slots__ = ("_parse", "_values", "first", "lines", "text")

    def __init__(self, first: int, lines: Sequence[int] = (), values: Sequence[Value] = ()) -> None:
        self.first, self.lines = first, lines
        self.text: bytes | None = None
        self._values: Sequence[Value] | None = values
        self._parse: Callable[[bytes], list[Value]] | None = None

    @classmethod
    def unparsed(cls, first: int, lines: Sequence[int], text: bytes, parse: Callable[[bytes], list[Value]]) -> "Batch":
        """Rows that need no parsing when a faster look at their text will do."""
        batch = cls(first, lines)
        batch.text, batch._values, batch._parse = text, None, parse
        return batch

    @property
    def values(self) -> Sequence[Value]:
        """One JSON object a row, or why it is none."""
        if self._values is None and self._parse is not None and self.text is not None:
            self._values = self._parse(self.text)
        return self._values or ()


@dataclass(slots=True)
class Notes:
    """What a reader noticed and forgave, and what it measured. Complete once the rows have been read to the end."""

    sha256: str = ""
    size_bytes: int = 0
    rows: int = 0
    forgiven: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def forgive(self, what: str, line: int, count: int = 1) -> None:
        """Remember an occurrence, or so many from `line` on; only the first lines are kept."""
        self.counts[what] = self.counts.get(what, 0) + count
        lines = self.forgiven.setdefault(what, [])
        if len(lines) < KEPT_LINES:
            lines.append(line)


class FormatError(DataError):
    """A file as a whole is not what its name says, or cannot be unpacked. `problem` has the contract's code.

    Attributes:
        line: where reading ended, when that is known.
    """

    code = 1020
    slug = "bad_format"

    def __init__(self, problem: RowProblem, line: int | None = None) -> None:
        super().__init__(problem.message, where=f"line {line}" if line else "", fix=problem.fix or "")
        self.problem, self.line = problem, line


class RowReader(Protocol):
    """A file as rows. `batches` may be called again; each call reads from the start."""

    notes: Notes

    def line_bound(self) -> int:
        """At least as many as there are rows; fast."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Read all rows.

        Raises:
            FormatError: the file as a whole cannot be read on.
            OSError: the disk fails.
        """
        ...

    def some(self, wanted: Collection[int]) -> Iterator[tuple[int, int, Value]]:
        """Give (row number, line number, value) of the wanted rows only, in order; cheaper than `batches`."""
        ...
