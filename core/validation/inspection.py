"""One file through both gates: layer 1 (spec) and layer 2 (content) in one or two passes (arrow: intake).

Reads    the data file, twice at level standard        Writes   through the sinks it is given, else nothing
Errors   what the file holds never raises; OSError of the disk and DropforgeError of the configuration do
Used by  gate.run_gates (with sinks, in the daemon's worker); gate.check_file and the two validators (without)

First pass: strict JSON, schema, order of turns, hashes, contamination, the held-out draw. Second pass: at level quick
512 seeded rows are encoded, otherwise every row that will be trained, into the token cache.
"""

import gc
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any  # JSON values

import orjson

from core.atomic import sha256_file
from core.chat_templates import Encoded
from core.formats import Batch, FormatError, JsonlReader, RowProblem, RowReader, check_content, open_rows
from core.lineage import Sidecar, SidecarError, check_claims
from core.validation.census import Census
from core.validation.detection import Detection, must_be_named, named_spec, spec_by_pattern, too_few_fit
from core.validation.labels import LabelAudit, Started, Todo, TokenStats, in_pieces
from core.validation.layer_one import LayerOne, canonical_rows, identified
from core.validation.masks import RoleTokens, painted
from core.validation.plan import Plan, Sinks
from core.validation.result import MAX_EXAMPLES, MAX_EXPLAINED, Issues, ValidationResult
from core.validation.rows import TrainingRow, rename_columns, shaped
from core.validation.second_half import SecondHalf, second_half
from core.validation.specs import DatasetSpec

if TYPE_CHECKING:
    from core.validation.content import ContentChecks

_UNREAD = RowProblem("spec_unknown", "no spec is known", fix='name it in the sidecar: {"spec": "..."}')
_MIN_DUPLICATE_ROWS = 10


class _Stop(Exception):
    """The file is refused as a whole; nothing more can be learnt."""

    def __init__(self, problem: RowProblem, line: int | None = None, repeats: tuple[int, list[int]] = (1, [])) -> None:
        super().__init__(problem.message)
        self.problem, self.line = problem, line
        self.count, self.lines = repeats


def _content_checks() -> "ContentChecks":
    from core.validation.content import ContentChecks  # compiles patterns that level quick does not need

    return ContentChecks()


class Inspection:
    """The inspection of one file. Call `run` once, then read the results."""

    def __init__(self, path: Path, sidecar: Sidecar, plan: Plan, sinks: Sinks | None = None) -> None:
        self._path, self._sidecar, self._plan, self._sinks = path, sidecar, plan, sinks
        self.issues = Issues()
        self.spec: DatasetSpec | None = None
        self.columns: Mapping[str, str] = {}
        self.rows = self.rows_set_aside = self.rows_dropped = self.rows_held_out = 0
        self.sha256: str | None = None
        self.size_bytes = 0
        self._audit = LabelAudit(plan.encoder, plan.max_length, plan.too_long) if plan.encoder is not None else None
        self.stats = self._audit.stats if self._audit is not None else TokenStats()
        self.masks: list[dict[str, Any]] = []
        self._reader: RowReader = open_rows(path)
        self._bad: set[int] = set()
        self._census = Census(plan)
        self._roles = RoleTokens(plan.encoder) if plan.encoder is not None and plan.level != "quick" else None
        self._counted: set[int] = set()  # rows whose turns are counted by role
        self._duplicates = 0
        self._content = _content_checks() if plan.content and plan.level != "quick" else None
        self.audit: dict[str, Any] | None = None
        self._detected = self._too_few_fit = False

    @property
    def rows_train(self) -> int:
        return self.rows - self.rows_set_aside - self.rows_dropped - self.rows_held_out

    def run(self) -> ValidationResult:
        """Inspect. Raises OSError of the disk, DropforgeError of the configuration."""
        collecting = gc.isenabled()
        gc.disable()  # rows are trees; looking for cycles among them costs a third of the time
        try:
            self._run()
        except _Stop as stop:
            first = stop.problem.code == "spec_unknown"
            self.issues.error(stop.problem, stop.line, foremost=first, count=stop.count, others=stop.lines)
        except FormatError as error:
            self.sha256 = self.sha256 or sha256_file(self._path)
            self.issues.error(error.problem, error.line)
        finally:
            if collecting:
                gc.enable()
        if self.issues.errors:
            self.rows_set_aside, self.rows_dropped, self.rows_held_out = self.rows, 0, 0
        return self.issues.result(self.as_stats())

    def count_only(self) -> dict[str, Any]:
        """Identity and row count of a file that is refused for another reason. Raises OSError."""
        self.size_bytes = self._path.stat().st_size
        try:
            self._count_rows()
        except FormatError:
            self.sha256 = sha256_file(self._path)  # the other reason is told; this file is not read on
        self.rows_set_aside = self.rows
        return self.as_stats()

    def as_stats(self) -> dict[str, Any]:
        """Counts and token statistics."""
        return {
            "rows": self.rows,
            "rows_train": self.rows_train,
            "rows_held_out": self.rows_held_out,
            "rows_set_aside": self.rows_set_aside,
            "rows_dropped": self.rows_dropped,
            "spec": self.spec.name if self.spec else None,
            "sha256": self.sha256,
            "bytes": self.size_bytes,
            "audit": self.audit,
            "tokens": self.stats.as_dict() | ({"by_role": self._roles.as_dict()} if self._roles is not None else {}),
        }

    def _run(self) -> None:
        self.size_bytes = self._path.stat().st_size
        self._note_misspelt_keys()
        check_content(self._path)
        with second_half(self._path, self._plan, self._likely_specs()) as half:
            self._find_spec()
            self._first_pass(self.spec, half)
        self._judge_first_pass()
        if self.issues.errors or not self._plan.content:
            return
        chosen = self._census.draw.chosen()
        self.rows_held_out = sum(map(len, chosen.values()))
        if self.rows_train <= 0:
            raise _Stop(RowProblem("nothing_to_train", "every row is held out or set aside", fix="add rows"))
        if self._plan.level == "quick":
            self._audit_some(chosen)
        else:
            self._encode_all(chosen)
        self._judge_labels()
        if self._content is not None:
            self._content.report(self.issues, self._plan.limits, self._duplicates)
        if self._plan.looks is not None:
            self.audit = self._plan.looks.report(self.issues, self._plan.limits)

    # -- layer 1 --------------------------------------------------------------------------------------------------

    def _note_misspelt_keys(self) -> None:
        if keys := self._sidecar.misspelt_keys():
            told = ", ".join(f"{key!r} (did you mean {near!r}?)" for key, near in list(keys.items())[:MAX_EXAMPLES])
            self.issues.warn("sidecar_key_unknown", len(keys), message=f"keys of the sidecar are not read: {told}")

    def _find_spec(self) -> None:
        plan, stated, line = self._plan, self._sidecar.spec, None
        if plan.spec and stated and plan.spec != stated:
            message = f"the sidecar says spec {stated}, asked for {plan.spec}"
            raise _Stop(RowProblem("sidecar_mismatch", message, None, "$.spec", "name one of the two"))
        name = plan.spec or stated or spec_by_pattern(self._path.name, plan.spec_by_pattern)
        found: DatasetSpec | RowProblem | None
        if name is not None:
            found = named_spec(name, plan.specs)
        elif unnamed := must_be_named(self._path.name):
            found = unnamed
        else:
            known = self._likely_specs()
            renamed = map(self._renamed, self._reader.batches()) if self._sidecar.columns else self._reader.batches()
            detection = Detection(known, plan.specs, self._sidecar.columns)
            # one bad row refuses the file, and the first pass sees it; an archive is unpacked first: it may be a bomb
            trust = plan.bad_rows == "reject_file" and self._path.suffix.lower() == ".jsonl"
            found = detection.run(renamed, self._reader.line_bound, trust_first=trust) or next(iter(known), None)
            line, self._detected = detection.line, True
        if isinstance(found, RowProblem):
            self._count_rows()
            raise _Stop(found, line)
        self.spec = found
        if found is not None:
            self.columns = found.columns if self._sidecar.columns is None else self._sidecar.columns

    def _renamed(self, batch: Batch) -> Batch:
        columns = self._sidecar.columns or {}
        values = [v if isinstance(v, RowProblem) else dict(rename_columns(v, columns)) for v in batch.values]
        return Batch(batch.first, batch.lines, values)

    def _count_rows(self) -> None:
        """A file refused before it was read still gets its identity and its row count."""
        for batch in self._reader.batches():
            for line, value in zip(batch.lines, batch.values, strict=True):
                if isinstance(value, RowProblem) and self.issues.errors < MAX_EXPLAINED:
                    self.issues.error(value, line)
        self._take_notes()

    def _take_notes(self) -> None:
        notes = self._reader.notes
        self.sha256, self.rows = notes.sha256, notes.rows
        for what, lines in notes.forgiven.items():
            self.issues.warn(what, notes.counts[what], lines)

    def _likely_specs(self) -> list[DatasetSpec]:
        named = self._plan.spec or self._sidecar.spec
        names = [named] if named else self._plan.detect_specs
        return [self._plan.specs[name] for name in names if name in self._plan.specs]

    def _first_pass(self, spec: DatasetSpec | None, half: SecondHalf | None) -> None:
        plan = self._plan
        layer = LayerOne(spec, self.columns, plan.suites, grams=plan.level != "quick") if spec is not None else None
        batches = self._reader.batches()
        if half and layer and isinstance(self._reader, JsonlReader):
            batches = self._reader.batches(half.known_to(layer, self._census))
        for batch in batches:
            self._look(batch, layer)
        self._take_notes()
        if layer and self._sidecar.columns:
            layer.warn_of_unseen(self.issues)
        self._too_few_fit = bool(layer and self._detected and layer.parsed and too_few_fit(layer.misfits, layer.parsed))

    def _look(self, batch: Batch, layer: LayerOne | None) -> None:
        texts = layer.canonical(batch) if layer else None
        if texts is not None:
            self._census.add(range(batch.first, batch.first + len(texts)), batch.lines, texts)
            return
        checked = layer.check(batch.values) if layer else [_UNREAD for _ in batch.values]
        numbers: list[int] = []
        rows: list[TrainingRow] = []
        for number, outcome in enumerate(checked, batch.first):
            if isinstance(outcome, RowProblem):
                offset = number - batch.first
                self._bad_row(number, batch.lines[offset], outcome, batch.values[offset])
            else:
                numbers.append(number)
                rows.append(outcome)
        self._census.add(numbers, [batch.lines[n - batch.first] for n in numbers], canonical_rows(rows))

    def _bad_row(self, number: int, line: int, problem: RowProblem, value: object) -> None:
        if self._plan.bad_rows == "set_aside":
            self._bad.add(number)
            self.issues.warn(problem.code, 1, [line])
            if self._sinks is not None:
                self._sinks.set_aside(number, line, problem, value)
        else:
            self.issues.error(problem, line)

    def _judge_first_pass(self) -> None:
        if self.rows == 0:
            raise _Stop(RowProblem("empty", "the file holds no rows", fix="drop a file with at least one row"))
        if self._too_few_fit:
            self._settle_spec()
        self._count_duplicates()
        self.rows_set_aside = len(self._bad)
        if len(self._bad) > self._plan.bad_rows_limit * self.rows:
            message = f"{len(self._bad)} of {self.rows} rows are bad, more than validation.bad_rows_limit"
            raise _Stop(RowProblem("spec_mismatch", message, fix="repair the file or raise the limit"))
        try:
            check_claims(self._sidecar, sha256=self.sha256 or "", size_bytes=self.size_bytes, rows=self.rows)
        except SidecarError as error:
            raise _Stop(RowProblem(error.slug, error.message, None, error.field, error.fix)) from error

    def _count_duplicates(self) -> None:
        """Rows that stand in the file again; more than half of them is a mistake, whatever the settings say."""
        if self._content is None:
            return
        self._duplicates, total = self._census.duplicates()
        if self.issues.errors or total < _MIN_DUPLICATE_ROWS or self._duplicates * 2 <= total:
            return
        rows = self._census.repeated(MAX_EXAMPLES, self._bad)
        first, *others = [line for _, line, _ in self._reader.some(set(rows))]
        message = f"{self._duplicates} of {total} rows repeat an earlier row of this file (first: line {first})"
        problem = RowProblem("duplicate_rows", message, fix="keep one of each; epochs repeat rows")
        raise _Stop(problem, first, (self._duplicates, others))

    def _settle_spec(self) -> None:
        """What the first rows are does not fit enough of all: find out from all of them, then begin again by that."""
        detection = Detection(self._likely_specs(), self._plan.specs, self._sidecar.columns)
        found = detection.run(map(self._renamed, self._reader.batches()), lambda: 0)
        if not isinstance(found, DatasetSpec):
            raise _Stop(found or _UNREAD, detection.line)
        self.issues, self._census, self._bad = Issues(), Census(self._plan), set()
        self._note_misspelt_keys()
        self.spec = found
        self.columns = found.columns if self._sidecar.columns is None else self._sidecar.columns
        self._first_pass(found, None)

    # -- layer 2 --------------------------------------------------------------------------------------------------

    def _audit_some(self, chosen: Mapping[bytes, list[int]]) -> None:
        """Encode the sample, and every row whose size allows it to be over max_length."""
        held = {number: digest for digest, numbers in chosen.items() for number in numbers}
        audit = self._audit
        for todo in in_pieces(self._rows_to_audit(held)):
            if audit is not None:
                self._take(todo, audit.start([row for *_, row in todo], None), audit, keep=False)

    def _rows_to_audit(self, held: Mapping[int, bytes]) -> Iterator[Todo]:
        """The sample first; held-out rows are handed on."""
        kept = {number: row for number, row in self._census.sample.kept().items() if number not in held}
        for number, (line, text) in kept.items():
            yield number, line, b"", orjson.loads(text)
        wanted = (self._census.sample.numbers | set(self._census.large)) - held.keys() - kept.keys()
        for number, line, value in self._reader.some(wanted | held.keys() if self._sinks else wanted):
            if isinstance(value, RowProblem):
                continue
            row = self._training(value)
            if number in held:
                self._hold_out(number, held[number], row)
            else:
                yield number, line, b"", row

    def _encode_all(self, chosen: Mapping[bytes, list[int]]) -> None:
        """Encode every row to train: the tokenizer reads some in its own thread while others are looked at."""
        self._counted = self._census.sample.numbers
        audit = self._audit
        before: list[tuple[list[Todo], Started]] = []
        with ThreadPoolExecutor(1) as pool:
            for todo in in_pieces(self._rows_to_train(chosen)):
                if audit is not None:
                    before.append((todo, audit.start([row for *_, row in todo], pool)))
                    if len(before) > 1:
                        self._take(*before.pop(0), audit, keep=True)
            if audit is not None and before:
                self._take(*before[0], audit, keep=True)

    def _rows_to_train(self, chosen: Mapping[bytes, list[int]]) -> Iterator[Todo]:
        """The rows to train; held-out ones are handed on, all others looked at."""
        for batch in self._reader.batches():
            for number, digest, row in identified(self.spec, self.columns, batch, self._bad) if self.spec else ():
                line = batch.lines[number - batch.first]
                if digest in chosen:
                    self._hold_out(number, digest, row)
                    continue
                if self._content is not None:
                    self._content.look(line, row)
                if self._plan.looks is not None:
                    self._plan.looks.look(line, digest, row)
                yield number, line, digest, row

    def _training(self, value: Mapping[str, Any]) -> TrainingRow:
        assert self.spec is not None  # noqa: S101  # _judge_first_pass stops a file without one
        return shaped(rename_columns(value, self.columns), self.spec.kind)

    def _hold_out(self, number: int, digest: bytes, row: TrainingRow) -> None:
        if self._sinks is not None:
            self._sinks.held_out(number, digest, row)

    def _take(self, todo: list[Todo], begun: Started, audit: LabelAudit, *, keep: bool) -> None:
        """Judge encoded rows, and hand them on."""
        encoder = audit.encoder
        quoting = [line for (_, line, _, _), quotes in zip(todo, audit.quoting(begun), strict=True) if quotes]
        if quoting:
            self.issues.warn("special_tokens_in_text", len(quoting), quoting)
        kept: list[Encoded] = []
        numbers: list[int] = []
        digests: list[bytes] = []
        for (number, line, digest, row), encoded in zip(todo, audit.finish(begun), strict=True):
            if isinstance(encoded, RowProblem):
                self._unfit(number, line, row, encoded)
                continue
            kept.append(encoded)
            numbers.append(number)
            digests.append(digest)
            if self._roles is not None and number in self._counted:
                self._roles.add([row])
            if len(self.masks) < self._plan.show_mask:
                self.masks.append(painted(encoder, line, row, encoded))
        if keep and self._sinks is not None:
            self._sinks.train(numbers, digests, kept)

    def _unfit(self, number: int, line: int, row: TrainingRow, problem: RowProblem) -> None:
        if problem.code != "dropped":
            self.issues.error(problem, line)
            return
        self.issues.warn("too_long", 1, [line])
        self.rows_dropped += 1
        if self._sinks is not None:
            self._sinks.set_aside(number, line, problem, row)

    def _judge_labels(self) -> None:
        if self._plan.encoder is None:
            self.issues.warn("labels_unchecked", message="no tokenizer yet: dropforge up makes it, then check again")
            return
        if self.stats.truncated_rows:
            self.issues.warn("truncated", self.stats.truncated_rows)
        if self.rows_train <= 0:
            raise _Stop(RowProblem("too_long", "every row is over hyperparams.max_length", fix="shorten the rows"))
        if not self.issues.errors and (suspicion := self.stats.suspicion()):
            self.issues.warn("mask_suspect", message=suspicion)
