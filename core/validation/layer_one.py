"""Rows against their spec, a batch at a time (arrow: intake, layer 1).

A batch that is plainly good is checked by one call of the compiled schema; any doubt and each row is looked at alone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any  # rows are JSON

import jsonschema_rs
import orjson

from core.formats import Batch, RowProblem
from core.formats.rows import Value
from core.validation.contamination import SuiteIndex
from core.validation.result import MAX_EXAMPLES, Issues
from core.validation.rows import (
    TrainingRow,
    canonical_json,
    order_problem,
    rename_columns,
    row_sha256,
    shaped,
    training_row,
)
from core.validation.specs import DatasetSpec
from core.validation.typed_rows import PlainRows, typed_rows

Checked = TrainingRow | RowProblem


@dataclass(slots=True)
class LayerOne:
    """Checks rows against one spec and the evaluation suites.

    Attributes:
        parsed: rows that were JSON objects so far.
        misfits: those of them that broke the schema.
        unseen: columns of the file's own names that are to be renamed and that no row had so far.
    """

    spec: DatasetSpec
    columns: Mapping[str, str]
    suites: SuiteIndex
    grams: bool = True
    parsed: int = 0
    misfits: int = 0
    unseen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unseen = set(self.columns.values())

    def canonical(self, batch: Batch) -> list[bytes] | None:
        """The canonical JSON of a batch's training rows when all of them are plainly good; None sends it to `check`."""
        found = plain_rows(self.spec, self.columns, batch)
        if found is None:
            return None
        if self.suites.by_prompt and self._any_item(found):
            return None
        self.parsed += len(found.texts)
        return found.texts

    def _any_item(self, rows: PlainRows) -> bool:
        """Does one of these rows ask what a suite asks?"""
        overlaps = self.grams and bool(self.suites.by_gram)
        asked = rows.texts if overlaps else [rows.texts[index] for index in self.suites.suspects(rows.openings)]
        return any(self._suite_item(orjson.loads(text)) for text in asked)

    def check(self, values: Sequence[Value]) -> list[Checked]:
        """Turn rows into training rows, or say why not."""
        rows = [v if isinstance(v, RowProblem) else self._renamed(v) for v in values]
        if _all_valid(self.spec, rows):
            self.parsed += len(rows)
            return [self._content(row) for row in rows if not isinstance(row, RowProblem)]
        return [row if isinstance(row, RowProblem) else self._check_one(row) for row in rows]

    def _renamed(self, row: Mapping[str, Any]) -> Mapping[str, Any] | RowProblem:
        """A row with our column names, unless one of them is given to a column and borne by another already."""
        if self.unseen:
            self.unseen.difference_update(row)
        renamed = rename_columns(row, self.columns)
        if len(renamed) == len(row):
            return renamed
        ours, theirs = next(pair for pair in self.columns.items() if {*pair} <= row.keys())
        message = f"not {self.spec.name}: {theirs!r} is to be {ours!r}, but the row has a column {ours!r} too"
        return RowProblem("spec_mismatch", message, None, f"$.{ours}", "remove or rename one of the two columns")

    def warn_of_unseen(self, issues: Issues) -> None:
        """A row may lack a column that is optional; when all of them do, its name in the sidecar is likely wrong."""
        if self.unseen and self.parsed > self.misfits:
            pairs = [f"{theirs!r} (as {ours!r})" for ours, theirs in self.columns.items() if theirs in self.unseen]
            message = f"no row has these columns of the sidecar: {', '.join(pairs[:MAX_EXAMPLES])}"
            issues.warn("sidecar_column_unknown", len(pairs), message=message)

    def _check_one(self, row: Mapping[str, Any]) -> Checked:
        self.parsed += 1
        if not self.spec.fits(row):
            self.misfits += 1
            unexplained = RowProblem("spec_mismatch", f"not {self.spec.name}", fix="write the row as the spec has it")
            return self.spec.explain(row, self.columns) or unexplained
        return self._content(row)

    def _content(self, row: Mapping[str, Any]) -> Checked:
        trained = shaped(row, self.spec.kind)
        problem = order_problem(trained, self.spec)
        if problem is not None:
            return problem
        item = self._suite_item(trained) if self.suites.by_prompt else None
        if item is not None:
            fix = "remove the row: what is judged with must not be trained"
            return RowProblem("contaminated", f"the question is item {item} of an evaluation suite", fix=fix)
        return trained

    def _suite_item(self, row: TrainingRow) -> str | None:
        return self.suites.hit(row) or (self.suites.overlap(row) if self.grams else None)


def plain_rows(spec: DatasetSpec, columns: Mapping[str, str], batch: Batch) -> PlainRows | None:
    """A batch by the typed road; None where that does not take it."""
    typed = None if columns or batch.text is None else typed_rows(spec)
    return typed.read(batch.text, len(batch.lines)) if typed and batch.text is not None else None


def identified(
    spec: DatasetSpec, columns: Mapping[str, str], batch: Batch, bad: Collection[int]
) -> Iterator[tuple[int, bytes, TrainingRow]]:
    """The training rows of a batch but those that the first pass found bad: (row number, SHA-256, row)."""
    plain = plain_rows(spec, columns, batch)
    for number, value in enumerate(plain.texts if plain is not None else batch.values, batch.first):
        if number in bad or isinstance(value, RowProblem):
            continue
        if isinstance(value, bytes):
            yield number, sha256(value).digest(), orjson.loads(value)
        else:
            row = training_row(value, spec, columns)
            yield number, row_sha256(row), row


def _all_valid(spec: DatasetSpec, rows: Sequence[object]) -> bool:
    return not any(type(row) is RowProblem for row in rows) and _batch_schema(spec).is_valid(rows)


@lru_cache(maxsize=32)
def _batch_schema(spec: DatasetSpec) -> jsonschema_rs.Validator:
    row = {key: value for key, value in spec.schema.items() if key not in ("$schema", "$id")}
    dialect = spec.schema.get("$schema", "https://json-schema.org/draft/2020-12/schema")
    return jsonschema_rs.validator_for({"$schema": dialect, "type": "array", "items": row})


def canonical_rows(rows: Sequence[TrainingRow]) -> list[bytes]:
    """The canonical JSON of many training rows with one call: no text inside a row can hold the separator unescaped.

    Training rows are built with sorted keys (see `rows.shaped`), which a test holds.
    """
    if not rows:
        return []
    first = next(iter(rows[0]))
    opening = b'{"' + first.encode() + b'":'
    parts = orjson.dumps(rows)[1:-1].split(b"," + opening)
    if len(parts) != len(rows):
        return [canonical_json(row) for row in rows]
    return [parts[0], *(opening + part for part in parts[1:])]
