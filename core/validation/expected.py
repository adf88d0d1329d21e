"""The rows a job must train, recounted from its data file (queue, trainer, verify).

Reads    the job's data file, sidecar and NAME.rejected.jsonl; checkpoints/<run>/incoming/<job_id>.jsonl
Writes   only `build_token_cache`: <job>/tokens/         Errors   DataError when the file does not give these rows

Neither the token cache nor a verdict's totals are believed here; only which spec the gate chose is taken from the
verdict.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from core.chat_templates import ChatEncoder, Encoded
from core.errors import DataError
from core.formats import RowProblem, open_rows
from core.job_queue import SET_ASIDE_SUFFIX, Job
from core.lineage import read_sidecar
from core.paths import Workspace
from core.settings import Settings
from core.validation.held_out import read_held_out_file
from core.validation.labels import LabelAudit
from core.validation.rows import TrainingRow, row_sha256, training_row
from core.validation.specs import DatasetSpec, load_specs
from core.validation.token_cache import HASH_DTYPE, TokenCache, TokenCacheWriter

_BATCH = 256
_MEASURE_AGAIN = "dropforge retry JOB_ID: the gates measure the file again"


@dataclass(frozen=True, slots=True, eq=False)
class ExpectedRows:
    """Rows of one job that are trained. Shapes: row_numbers uint32 [n], 0-based; hashes S16 [n].

    Attributes:
        rows: all rows of the file.
        held_out, excluded: rows held out; rows set aside or dropped.
    """

    row_numbers: NDArray[np.uint32]
    hashes: NDArray[np.bytes_]
    rows: int
    held_out: int
    excluded: int


@dataclass(frozen=True, slots=True)
class JobRows:
    """How to read a job's training rows."""

    data_file: Path
    spec: DatasetSpec
    columns: Mapping[str, str]
    held_out: Collection[bytes] = frozenset()
    excluded: Collection[int] = frozenset()

    @classmethod
    def of(cls, job: Job, workspace: Workspace, run: str) -> "JobRows":
        """Find out how the gate read a job. Raises DataError, ConfigError, StorageError."""
        name = job.verdict().get("spec")
        specs = load_specs(workspace.specs_dirs())
        if name not in specs:
            raise DataError(f"the verdict names no known spec ({name})", where=str(job.folder))
        data, spec = job.data_file, specs[name]
        columns = read_sidecar(job.sidecar_file).columns
        aside_file = data.with_name(data.name + SET_ASIDE_SUFFIX)
        return cls(
            data,
            spec,
            spec.columns if columns is None else columns,
            held_out_of(workspace, run, job.job_id),
            _row_numbers(aside_file) if os.path.isfile(aside_file) else frozenset(),
        )

    def __iter__(self) -> Iterator[tuple[int, bytes, TrainingRow]]:
        """All rows that were not excluded: (row number, SHA-256, training row), held-out ones too."""
        for number, _line, digest, row in self.with_lines():
            yield number, digest, row

    def with_lines(self) -> Iterator[tuple[int, int, bytes, TrainingRow]]:
        """The same with the line: (row number, line, SHA-256, training row)."""
        for batch in open_rows(self.data_file).batches():
            for number, value in enumerate(batch.values, batch.first):
                if number in self.excluded:
                    continue
                line = batch.lines[number - batch.first]
                if isinstance(value, RowProblem):
                    raise DataError(value.message, where=f"{self.data_file}:{line}")
                try:
                    row = training_row(value, self.spec, self.columns)
                except (KeyError, TypeError) as error:  # the gate let only fitting rows in: the file has changed
                    place = f"{self.data_file}:{line}"
                    raise DataError(f"the row is not {self.spec.name} any more", where=place) from error
                yield number, line, row_sha256(row), row


def held_out_of(workspace: Workspace, run: str, job_id: str) -> Collection[bytes]:
    """The hashes of the rows of a job that a run holds out. Raises OSError; ValueError for a damaged line."""
    file = workspace.incoming_dir(run) / f"{job_id}.jsonl"
    return read_held_out_file(file) if file.is_file() else frozenset()


def _row_numbers(file: Path) -> frozenset[int]:
    with file.open("rb") as lines:
        return frozenset(int(orjson.loads(line)["row"]) for line in lines)


def expected_rows(job: Job, settings: Settings, workspace: Workspace) -> ExpectedRows:
    """Recount the rows that a job must train exactly `epochs` times.

    Raises:
        DataError: the data file is not what the gate accepted.
    """
    rows = JobRows.of(job, workspace, settings.run)
    numbers: list[int] = []
    hashes: list[bytes] = []
    held_out = 0
    for number, digest, _row in rows:
        if digest in rows.held_out:
            held_out += 1
        else:
            numbers.append(number)
            hashes.append(digest[:16])
    excluded = len(rows.excluded)
    total = len(numbers) + held_out + excluded
    return ExpectedRows(
        np.array(numbers, dtype=np.uint32), np.array(hashes, dtype=HASH_DTYPE), total, held_out, excluded
    )


def build_token_cache(folder: Path, rows: JobRows, encoder: ChatEncoder, *, max_length: int, too_long: str) -> None:
    """Encode a job's training rows into a token cache.

    Args:
        folder: where the cache goes; replaced when it exists.
        too_long: as in the settings; what gate level "quick" did not look at is refused here.

    Raises:
        DataError: a row cannot be trained.
    """
    audit = LabelAudit(encoder, max_length=max_length, too_long=too_long)
    writer = TokenCacheWriter(folder)
    try:
        todo: list[tuple[int, bytes, TrainingRow]] = []
        for entry in rows:
            if entry[1] not in rows.held_out:
                todo.append(entry)
            if len(todo) >= _BATCH:
                _encode_into(writer, audit, todo)
                todo = []
        _encode_into(writer, audit, todo)
        writer.finish(encoder.fingerprint(max_length))
    except BaseException:
        writer.abandon()
        raise


def _encode_into(writer: TokenCacheWriter, audit: LabelAudit, todo: list[tuple[int, bytes, TrainingRow]]) -> None:
    encoded_rows = audit.encode([row for _, _, row in todo])
    good: list[Encoded] = []
    for (number, _, _), encoded in zip(todo, encoded_rows, strict=True):
        if isinstance(encoded, RowProblem):
            fix = f"{encoded.fix}, then {_MEASURE_AGAIN}" if encoded.fix else _MEASURE_AGAIN
            raise DataError(encoded.message, where=f"row {number + 1}", fix=fix)
        good.append(encoded)
    writer.extend(good, [number for number, _, _ in todo], [digest for _, digest, _ in todo])


def token_cache_of(job: Job, settings: Settings, workspace: Workspace, encoder: ChatEncoder) -> TokenCache:
    """Open a job's token cache, building it again when it is missing, damaged or made with another tokenizer.

    Raises:
        DataError: a row cannot be trained; the message names it.
    """
    wanted = encoder.fingerprint(settings.hyperparams.max_length)
    try:
        cache = TokenCache.open(job.tokens_folder)
        if cache.fingerprint == wanted:
            return cache
    except DataError:
        pass  # built again below
    rows = JobRows.of(job, workspace, settings.run)
    build_token_cache(
        job.tokens_folder,
        rows,
        encoder,
        max_length=settings.hyperparams.max_length,
        too_long=settings.validation.too_long,
    )
    return TokenCache.open(job.tokens_folder)
