"""Which spec a file obeys when nobody says so (arrow: intake, layer 1)."""

import fnmatch
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any  # schemas are JSON

from core.formats.rows import Batch, RowProblem
from core.formats.strict_json import parse_row
from core.validation.specs import KINDS, DatasetSpec, nearest_spec
from core.validation.typed_rows import typed_rows

_MISFITS_IN = 10  # one row in so many may differ: at least 90 % must fit
Example = tuple[int, Mapping[str, object]]


def named_spec(wanted: str, specs: Mapping[str, DatasetSpec]) -> DatasetSpec | RowProblem:
    """Look a spec up by name."""
    if wanted in specs:
        return specs[wanted]
    near = nearest_spec(wanted, specs)
    fix = f"did you mean {near!r}?" if near else f"known are {', '.join(sorted(specs))}"
    return RowProblem("spec_unknown", f"there is no spec {wanted!r}", None, "$.spec", fix)


def spec_by_pattern(name: str, patterns: Mapping[str, str]) -> str | None:
    """The spec of the first glob that matches a file name, or the name with its suffix in small letters."""
    stem, suffix = os.path.splitext(name)
    names = (name, stem + suffix.lower())
    return next((spec for glob, spec in patterns.items() if fnmatch.filter(names, glob)), None)


def must_be_named(name: str) -> RowProblem | None:
    """Any prose fits the spec of plain text: a note left in the inbox is trained only when somebody says so."""
    if not name.lower().endswith(".txt"):
        return None
    fix = (
        'to train it as plain text, write {"spec": "completion_v1"} into its sidecar '
        "(the file's name with .meta.json appended), or set inbox.spec_by_pattern"
    )
    return RowProblem("spec_unknown", "a .txt file is trained only when its spec is named", None, "$.spec", fix)


class Detection:
    """Finds the one candidate that at least 90 % of the rows fit.

    Args:
        columns: what the rows' columns were renamed by, for the words of a refusal.

    Attributes:
        line: after a refusal, the line that its message speaks of.
    """

    def __init__(
        self,
        candidates: Sequence[DatasetSpec],
        specs: Mapping[str, DatasetSpec],
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self._columns = columns or {}
        self._candidates = {spec.name: spec for spec in candidates}
        self._specs = specs
        self._misfits = dict.fromkeys(self._candidates, 0)
        self._examples: dict[str, Example] = {}
        self._first: Example | None = None
        self._parsed = 0
        self._alive = dict(self._candidates)
        self.line: int | None = None

    def run(
        self, batches: Iterable[Batch], line_bound: Callable[[], int], *, trust_first: bool = False
    ) -> DatasetSpec | RowProblem | None:
        """Read until the answer is known.

        Args:
            line_bound: gives at least as many as there are rows; a candidate is given up once too many of them cannot
                fit. 0 reads to the end.
            trust_first: take the one candidate that all rows of the first batch fit, if none of them can fit another.

        Returns:
            The spec; or the refusal, naming the nearest spec; or None when no row could be read at all. A spec that
            is returned early may still turn out to fit too few rows: see `too_few_fit`.
        """
        most = None if trust_first else line_bound()
        for batch in batches:
            self._count(batch)
            if most is None:
                if only := self._only_fit(len(batch.lines)):
                    return only
                most = line_bound()
            if most and self._parsed < most:
                self._give_up(most)
                if len(self._alive) < 2:
                    break
        else:
            self._give_up(self._parsed)
        if self._first is None:
            return None
        return next(iter(self._alive.values())) if len(self._alive) == 1 else self._refusal(*self._first)

    def _only_fit(self, rows: int) -> DatasetSpec | None:
        """The candidate that all of so many rows fit and that excludes all others."""
        fits = next((spec for spec in self._alive.values() if not self._misfits[spec.name]), None)
        others = [spec for spec in self._alive.values() if spec is not fits]
        alone = fits is not None and self._parsed == rows and all(_exclude(fits, other) for other in others)
        return fits if alone else None

    def _count(self, batch: Batch) -> None:
        fits = next((spec for spec in self._alive.values() if self._all_fit(spec, batch)), None)
        others = [spec for spec in self._alive.values() if spec is not fits]
        if fits is None or not all(_exclude(fits, other) for other in others):
            self._count_rows(batch)
            return
        self._parsed += len(batch.lines)
        row = parse_row((batch.text or b"").partition(b"\n")[0])
        if isinstance(row, RowProblem):
            return  # not reached: all rows of this batch fit
        example = (batch.lines[0], row)
        self._first = self._first or example
        for other in others:
            self._misfits[other.name] += len(batch.lines)
            self._examples.setdefault(other.name, example)

    @staticmethod
    def _all_fit(spec: DatasetSpec, batch: Batch) -> bool:
        typed = typed_rows(spec) if batch.text is not None else None
        return typed is not None and typed.read(batch.text or b"", len(batch.lines)) is not None

    def _count_rows(self, batch: Batch) -> None:
        for line, row in zip(batch.lines, batch.values, strict=True):
            if isinstance(row, RowProblem):
                continue
            self._parsed += 1
            self._first = self._first or (line, row)
            for name, spec in self._alive.items():
                if not spec.fits(row):
                    self._misfits[name] += 1
                    self._examples.setdefault(name, (line, row))

    def _give_up(self, rows: int) -> None:
        self._alive = {n: s for n, s in self._alive.items() if not too_few_fit(self._misfits[n], rows)}

    def _refusal(self, first_line: int, first_row: Mapping[str, object]) -> RowProblem:
        """Word that no spec fits: the nearest one, and the field that differs."""
        fix = 'name it in the sidecar: {"spec": "..."}'
        if self._alive:
            return RowProblem("spec_unknown", f"the rows fit {' and '.join(self._alive)}", None, "$", fix)
        best = min(self._misfits, key=lambda name: self._misfits[name], default=None)
        if best is not None and self._misfits[best] < self._parsed:
            self.line, row = self._examples[best]
            problem = self._candidates[best].explain(row, self._columns)
            message = f"fewer than 90 % of the rows fit {best}, and no other spec: {_told(problem, best)}"
            return RowProblem("spec_unknown", message, None, problem.field if problem else None, fix)
        self.line = first_line
        nearest = min(self._specs.values(), key=lambda spec: (_distance(spec, first_row), spec.name))
        problem = nearest.explain(first_row, self._columns)
        if problem is None:
            fix = f'write {{"spec": "{nearest.name}"}} into the sidecar, or add it to inbox.detect_specs'
            return RowProblem("spec_unknown", f"no spec is named and the rows look like {nearest.name}", None, "$", fix)
        message = f"no spec fits; nearest is {nearest.name}, but {_told(problem, nearest.name)}"
        fix = (None if self._columns else _column_fix(nearest, first_row)) or problem.fix or fix
        return RowProblem("spec_unknown", message, None, problem.field, fix)


def _exclude(one: DatasetSpec, other: DatasetSpec) -> bool:
    """Can no row fit both? Surely so when one requires a column that the other does not allow."""
    return _requires_unknown(one.schema, other.schema) or _requires_unknown(other.schema, one.schema)


def _requires_unknown(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    closed = other.get("additionalProperties") is False and "patternProperties" not in other
    return closed and not set(one.get("required", ())) <= set(other.get("properties", ()))


def _told(problem: RowProblem | None, name: str) -> str:
    return problem.message.removeprefix(f"not {name}: ") if problem else "it differs"


def _renamable(spec: DatasetSpec, row: Mapping[str, object]) -> list[tuple[str, str]] | None:
    """Could a column map make this row fit? Only for specs of texts, and as many texts as they ask for."""
    wanted = KINDS[spec.kind]
    texts = [key for key, value in row.items() if isinstance(value, str)]
    if spec.kind not in ("text", "prompt_completion") or len(texts) != len(row) or len(texts) != len(wanted):
        return None
    return list(zip(wanted, texts, strict=True))


def _distance(spec: DatasetSpec, row: Mapping[str, object]) -> float:
    return 0.5 if _renamable(spec, row) and not spec.fits(row) else spec.error_count(row)


def _column_fix(spec: DatasetSpec, row: Mapping[str, object]) -> str | None:
    pairs = _renamable(spec, row)
    if pairs is None:
        return None
    columns = json.dumps(dict(pairs), ensure_ascii=False)
    return f'write {{"spec": "{spec.name}", "columns": {columns}}} into the sidecar'


def too_few_fit(misfits: int, parsed: int) -> bool:
    """Did a detected spec lose too many rows after all?"""
    return misfits * _MISFITS_IN > parsed
