"""What a gate answers: issues found, and one verdict over all of them (arrow: intake)."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # JSON values

from core.formats.rows import RowProblem

MAX_EXPLAINED = 100  # problems that are worded one by one
MAX_EXAMPLES = 10  # line numbers kept for each kind of issue

SPEC_VALIDATOR = ("SpecValidator", "1.0.0")
DATA_VALIDATOR = ("DataValidator", "1.0.0")
VALIDATOR_VERSIONS: dict[str, str] = {SPEC_VALIDATOR[0]: SPEC_VALIDATOR[1], DATA_VALIDATOR[0]: DATA_VALIDATOR[1]}
_SPEC_CODES = {
    "locked_field",
    "spec_unknown",
    "spec_mismatch",
    "sidecar_mismatch",
    "sidecar_key_unknown",
    "sidecar_column_unknown",
}


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """The answer of one validator. `line` and `field` are those of the first error."""

    ok: bool
    code: str
    message: str
    line: int | None = None
    field: str | None = None
    issues: tuple[Mapping[str, Any], ...] = ()
    stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    column: int | None = None
    fix: str | None = None


@dataclass(slots=True)
class _Kind:
    count: int = 0
    lines: list[int] = dataclasses.field(default_factory=list)
    message: str | None = None


class Issues:
    """Collects errors and warnings of one file; remembers the first error (by line) in full."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self.first: tuple[int, RowProblem] | None = None
        self.errors = 0
        self.messages: list[str] = []

    def error(
        self,
        problem: RowProblem,
        line: int | None = None,
        *,
        foremost: bool = False,
        count: int = 1,
        others: Sequence[int] = (),
    ) -> None:
        """Add one error; a line of None is the whole file, which comes before any line, as a foremost one does.

        Args:
            count: how many rows it is about.
            others: lines of more of these rows.
        """
        self.errors += 1
        self._count("error", problem.code, count, [*([] if line is None else [line]), *others])
        if len(self.messages) < MAX_EXPLAINED:
            where = f"line {line}: " if line else ""
            self.messages.append(f"{where}{problem.message}")
        if foremost or self.first is None or (line or 0) < self.first[0]:
            self.first = (line or 0, problem)

    def warn(self, code: str, count: int = 1, lines: list[int] | None = None, message: str | None = None) -> None:
        """Add warnings of one kind; a message where the code alone does not say enough."""
        kind = self._count("warning", code, count, lines or [])
        kind.message = message or kind.message

    def _count(self, severity: str, code: str, count: int, lines: Sequence[int]) -> _Kind:
        kind = self._kinds.setdefault((severity, code), _Kind())
        kind.count += count
        kind.lines += lines[: MAX_EXAMPLES - len(kind.lines)]
        return kind

    def as_list(self) -> list[dict[str, Any]]:
        """The contract's `issues`, errors first; those that need words have a `message` too."""
        return [
            {
                "validator": validator,
                "version": version,
                "severity": severity,
                "code": code,
                "count": kind.count,
                "examples": kind.lines,
                **({"message": kind.message} if kind.message else {}),
            }
            for (severity, code), kind in sorted(self._kinds.items())
            for validator, version in [SPEC_VALIDATOR if code in _SPEC_CODES else DATA_VALIDATOR]
        ]

    def result(self, stats: Mapping[str, Any], accepted: str = "accepted") -> ValidationResult:
        """Sum up."""
        issues = tuple(self.as_list())
        if self.first is None:
            return ValidationResult(True, "ok", accepted, issues=issues, stats=stats)
        line, problem = self.first
        more = f" ({self.errors - 1} more errors)" if self.errors > 1 else ""
        told = problem.message.startswith("line ") or problem.message.endswith(f"line {line})")
        where = f"line {line}: " if line and not told else ""
        return ValidationResult(
            False,
            problem.code,
            f"{where}{problem.message}{more}",
            line or None,
            problem.field,
            issues,
            stats,
            problem.column,
            problem.fix,
        )
