"""What is found out about a file after it was let in, while it trains already (background child; check in its own).

Reads    a job folder, status/row_index/, the run's tokenizer
Writes   status/audits/<job_id>.json (its one writer; the daemon merges it into the verdict) and, at level deep,
         status/audits/<job_id>.html; status/row_index/<job_id>/, last, which says that the job is audited
Errors   DataError for a job whose rows cannot be read any more; StorageError, OSError of the disk
"""

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # facts are JSON

import numpy as np
from numpy.typing import NDArray

from core.atomic import write_bytes, write_json
from core.errors import DataError, DropforgeError, ResourceError
from core.job_queue import Job, JobQueue, is_job_id
from core.paths import Workspace, display_name
from core.settings import Settings
from core.status import iso_now
from core.validation.duplicates import DuplicateSearch, Earlier
from core.validation.encoders import encoder_for
from core.validation.expected import JobRows
from core.validation.looks import DEEP_LOOKS, LIKENESS, STANDARD_LOOKS, Looks, looking
from core.validation.masks import RoleTokens
from core.validation.result import Issues
from core.validation.row_index import RowIndex
from core.validation.token_cache import TokenCache
from core.verdicts import audit_file, with_audit

SCHEMA = "audit.v1"
_NOT_TRAINED = ("failed", "held")
_BY_LEVEL: dict[str, frozenset[str]] = {"quick": frozenset(), "standard": STANDARD_LOOKS, "deep": DEEP_LOOKS}
_NEWEST = "~"  # after every job id


class IndexBehindError(ResourceError):
    """Files before this one are not in the index yet, and a limit asks for a comparison with them."""

    code = 3021
    slug = "index_behind"


def earlier_rows(index: RowIndex, workspace: Workspace, job_id: str | None, level: str) -> Earlier:
    """The rows that a file is compared with: of all files let in before it; at level deep of those not trained too."""
    queue = JobQueue(workspace)
    left_out = set() if level == "deep" else {job.job_id for lane in _NOT_TRAINED for job in queue.jobs(lane)}
    counted = {other for other in index.job_ids - left_out if other < (job_id or _NEWEST)}
    return Earlier(list(index), counted, lambda other: _name(queue, other))


def _name(queue: JobQueue, job_id: str) -> str:
    try:
        return display_name(queue.find(job_id).data_file.name)
    except DropforgeError:
        return job_id  # its folder is gone


def not_indexed(index: RowIndex, workspace: Workspace, job_id: str | None) -> set[str]:
    """Jobs before this one whose rows are not in the index yet, those among them that are still in the gates."""
    known = {job.job_id for job in JobQueue(workspace).all_jobs() if job.lane not in _NOT_TRAINED}
    known |= {name for name in os.listdir(workspace.claim_dir) if is_job_id(name)}
    return {other for other in known - index.job_ids if other < (job_id or _NEWEST)}


@contextmanager
def looks_for(workspace: Workspace, settings: Settings, level: str, claim: Path | None) -> Iterator[Looks | None]:
    """What a gate has to look for itself.

    In a claim that is what may refuse the file: whatever has a limit. `dropforge check` (no claim) has no background
    child to come after it, so it looks for all of level deep; at level standard it leaves out what takes minutes.

    Raises:
        IndexBehindError: a limit asks for a comparison with files that are not in the index yet.
    """
    codes = set(settings.validation.limits.keys() & _BY_LEVEL[level])
    if claim is None:
        codes |= looks_of_check(level)
    earlier = None
    if codes & LIKENESS:
        earlier = _earlier_or_wait(workspace, claim, level)
    job_id = claim.name if claim is not None else ""
    with looking(codes, settings.trainer.seed, earlier, job_id, claim) as looks:
        yield looks


def looks_of_check(level: str) -> Set[str]:
    """What is looked for where no background child comes afterwards: at level standard nothing that takes minutes."""
    return _BY_LEVEL[level] - (LIKENESS if level == "standard" else frozenset())


def _earlier_or_wait(workspace: Workspace, claim: Path | None, level: str) -> Earlier:
    """The rows before a file; a claim waits until all of them are in the index. Raises IndexBehindError."""
    job_id = claim.name if claim is not None else None
    index = RowIndex(workspace.row_index_dir)
    behind = not_indexed(index, workspace, job_id)
    if behind and claim is not None:
        raise IndexBehindError(
            f"validation.limits asks for a comparison with earlier files; {len(behind)} are not in the index yet",
            where=str(workspace.row_index_dir),
            fix="wait: the daemon's background child takes them in",
        )
    return earlier_rows(index, workspace, job_id, level)


def audit_job(job: Job, workspace: Workspace, settings: Settings, index: RowIndex) -> None:
    """Look at all rows of a job, write what was found, and take the rows into the index.

    Raises:
        DataError: the rows cannot be read.
    """
    verdict = job.verdict()
    level = str(verdict["level"])
    built = index.aside(job.job_id)
    search = DuplicateSearch(job.job_id, earlier_rows(index, workspace, job.job_id, level), built)
    looks = Looks(_BY_LEVEL[level], settings.trainer.seed, search)
    roles = RoleTokens(encoder_for(workspace, settings)) if level == "deep" else None
    if verdict["duplicate_of"] is None:
        rows = JobRows.of(job, workspace, settings.run)
        for _number, line, digest, row in rows.with_lines():
            if digest not in rows.held_out:
                looks.look(line, digest, row)
                if roles is not None:
                    roles.add([row])
    issues = Issues()
    facts = looks.report(issues, {})
    if roles is not None:
        facts |= {"by_role": roles.as_dict()} | _token_facts(job)
    _write(workspace, job, verdict, {"issues": issues.as_list(), "facts": facts})
    if job.job_id not in index.job_ids:
        index.keep(built)


def _token_facts(job: Job) -> dict[str, Any]:
    """How long the rows are and how much of each is trained, from the cache that the trainer reads."""
    try:
        cache = TokenCache.open(job.tokens_folder)
    except DataError:
        return {}  # a job of level quick before it was trained, or one whose cache is gone
    trained = np.array([int(cache.mask(row).sum()) for row in range(len(cache))])
    return {
        "row_tokens": _histogram(cache.lengths),
        "trained_share": _histogram(trained / np.maximum(cache.lengths, 1), span=(0.0, 1.0)),
        "trained_tokens": _histogram(trained),
    }


def _histogram(values: NDArray[Any], span: tuple[float, float] | None = None) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, bins=24, range=span)
    return {"counts": counts.tolist(), "edges": [float(f"{edge:.4g}") for edge in edges]}


def _write(workspace: Workspace, job: Job, verdict: dict[str, Any], found: dict[str, Any]) -> None:
    """The report first: the document names it."""
    report = None
    if verdict["level"] == "deep":
        file = workspace.audits_dir / f"{job.job_id}.html"
        from core.validation.audit_page import page  # loads jinja2

        report = str(file.relative_to(workspace.root))
        write_bytes(file, page(with_audit(verdict, found)).encode())
    facts = {"schema": SCHEMA, "job_id": job.job_id, "level": verdict["level"], "at": iso_now(), "report": report}
    doc = facts | found
    write_json(audit_file(workspace, job.job_id), doc)


def note_unreadable(job_id: str, reason: str, workspace: Workspace, index: RowIndex) -> None:
    """A job whose rows cannot be read any more is not asked for again. Raises StorageError, OSError."""
    issues = Issues()
    issues.warn("not_audited", message=f"its rows could not be looked at: {reason}")
    facts = {"schema": SCHEMA, "job_id": job_id, "level": None, "at": iso_now(), "report": None}
    write_json(audit_file(workspace, job_id), facts | {"issues": issues.as_list(), "facts": {}})
    if job_id not in index.job_ids:
        index.keep(index.aside(job_id))
