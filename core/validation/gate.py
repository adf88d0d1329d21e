"""The gates as the daemon and `dropforge check` run them (arrow: intake -> queue).

Reads    a claim folder, config/specs, config/suites, checkpoints/<run>/incoming, the run's tokenizer
Writes   into the claim folder only: tokens/, `.held_out.jsonl`, NAME.rejected.jsonl, NAME.meta.json (merged sidecar)
Errors   a retryable ResourceError when the root lacks what it takes to judge (a tokenizer, a sound suite, disk space):
         the file waits. A package that is missing holds the file. Whatever else fails refuses it: nothing fails open
Used by  core.daemon in a worker process; core.commands.check in its own
"""

import dataclasses
import errno
import logging
import os
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any  # verdicts are JSON

from core.atomic import write_json
from core.chat_templates import ChatEncoder
from core.errors import ConfigError, DropforgeError, ResourceError, StorageError
from core.formats import RowProblem
from core.job_queue import SIDECAR_SUFFIX, data_file_in, new_verdict
from core.lineage import Sidecar, SidecarError, check_generator, merged, read_sidecar
from core.paths import Workspace, display_name
from core.settings import Settings
from core.status import iso_now
from core.validation.claim_sinks import ClaimSinks
from core.validation.contamination import SuiteIndex
from core.validation.encoders import EncoderMissingError, encoder_for
from core.validation.held_out import read_held_out
from core.validation.inspection import Inspection
from core.validation.plan import Plan
from core.validation.result import VALIDATOR_VERSIONS, ValidationResult
from core.validation.specs import load_specs

if TYPE_CHECKING:
    from core.validation.looks import Looks

_MASKS_KEPT = 3  # rows of which the verdict shows what is trained
_log = logging.getLogger(__name__)
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class RootDamagedError(ResourceError):
    """A spec or a suite of the root cannot be read: nothing can be judged by it."""

    code = 3023
    slug = "root_damaged"


@dataclass(frozen=True, slots=True)
class GateContext:
    """What the daemon knows about a claim. Picklable."""

    root: Path
    job_id: str
    lane: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """What becomes of a claim. Picklable.

    Attributes:
        verdict: every key of the contract.
        state: "queued", "rejected" or "held".
        lane: where an accepted job waits (the sidecar's priority beats the folder's).
    """

    verdict: dict[str, Any]
    state: str
    lane: str


def run_gates(claim_folder: Path, context: GateContext) -> GateOutcome:
    """Run both gates over a claimed file.

    Raises:
        ResourceError: retryable; the machine or the root lacks something, which is no fault of the file: ask again.
    """
    workspace = Workspace(context.root)
    path = data_file_in(claim_folder)
    base = new_verdict(job_id=context.job_id, file=display_name(path.name), level=context.settings.validation.level)
    sidecar = Sidecar()
    try:
        try:
            sidecar = _sidecar_of(path, context.settings)
            verdict, passed = _inspect(
                path, sidecar, workspace, context.settings, base, claim_folder, show_mask=_MASKS_KEPT
            )
        except SidecarError as error:
            verdict, passed = _refused_by_sidecar(path, base, error), False
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise StorageError(f"the gate cannot write: {error.strerror}", where=str(claim_folder)) from error
        return _outcome(base | _unreadable(error, path), "held", context.lane)
    except ConfigError as error:  # a damaged spec or suite of the root
        raise RootDamagedError(error.message, where=error.where, fix=error.fix) from error
    except ResourceError as error:
        if error.retryable:
            raise
        return _outcome(base | _missing(error), "held", context.lane)
    except Exception as error:  # noqa: BLE001  # the loop's edge: a gate that raises refuses
        verdict, passed = base | _gate_error(error), False
    verdict["received_at"] = iso_now()
    _write_sidecar(path, sidecar, verdict, passed)
    lane = sidecar.priority or context.lane
    return _outcome(verdict, "queued" if passed else "rejected", lane)


def check_file(
    path: Path,
    settings: Settings,
    workspace: Workspace,
    level: str | None = None,
    spec: str | None = None,
    *,
    show_mask: int = 0,
) -> dict[str, Any]:
    """Both gates over a file where it lies; nothing is written or moved.

    Args:
        level: quick, standard or deep; None takes the settings' own.
        show_mask: for so many rows, say which text is trained: `verdict["mask"]`, see core.validation.masks.

    Returns:
        A verdict with state None when the file would be accepted, else "rejected".
    """
    level = level or settings.validation.level
    base = new_verdict(file=display_name(path.name), level=level)
    try:
        try:
            sidecar = _sidecar_of(path, settings)
            verdict, passed = _inspect(
                path, sidecar, workspace, settings, base, None, level=level, spec=spec, show_mask=show_mask
            )
        except SidecarError as error:
            verdict, passed = _refused_by_sidecar(path, base, error), False
    except OSError as error:
        return base | _unreadable(error, path) | {"state": "rejected"}
    except DropforgeError:
        raise
    except Exception as error:  # noqa: BLE001  # the loop's edge: a gate that raises refuses
        verdict, passed = base | _gate_error(error), False
    return verdict | {"state": None if passed else "rejected"}


def _sidecar_of(path: Path, settings: Settings) -> Sidecar:
    sidecar = read_sidecar(path.with_name(path.name + SIDECAR_SUFFIX))
    check_generator(sidecar, allow_unknown=settings.lineage.allow_unknown_generators)
    return sidecar


def plan_for(
    workspace: Workspace, settings: Settings, level: str, encoder: ChatEncoder | None, **more: Any
) -> Plan:  # more: fields of Plan
    """The inspection that the settings ask for. Raises ConfigError for a damaged spec or suite."""
    return dataclasses.replace(
        Plan(
            specs=load_specs(workspace.specs_dirs()),
            level=level,
            detect_specs=tuple(settings.inbox.detect_specs),
            spec_by_pattern=settings.inbox.spec_by_pattern,
            encoder=encoder,
            max_length=settings.hyperparams.max_length,
            too_long=settings.validation.too_long,
            bad_rows=settings.validation.bad_rows,
            limits=settings.validation.limits,
            bad_rows_limit=settings.validation.bad_rows_limit,
            seed=settings.trainer.seed,
            held_out=settings.trainer.held_out,
            held_out_cap=settings.trainer.held_out_cap,
            already_held_out=read_held_out(workspace.incoming_dir(settings.run)),
            suites=SuiteIndex.read(workspace.suites_dirs()),
        ),
        **more,
    )


def _inspect(
    path: Path,
    sidecar: Sidecar,
    workspace: Workspace,
    settings: Settings,
    base: dict[str, Any],
    claim_folder: Path | None,
    **more: Any,  # fields of Plan
) -> tuple[dict[str, Any], bool]:
    level = more.pop("level", settings.validation.level)
    if path.stat().st_size > settings.inbox.max_bytes:
        problem = RowProblem("too_large", f"over inbox.max_bytes = {settings.inbox.max_bytes}", fix="split the file")
        return base | _words(problem) | {"bytes": path.stat().st_size}, False
    encoder = _encoder_or_none(workspace, settings, needed=claim_folder is not None)
    sinks = ClaimSinks(claim_folder, path) if claim_folder is not None else None
    try:
        with _looks(workspace, settings, level, claim_folder) as looks:
            plan = plan_for(workspace, settings, level, encoder, looks=looks, **more)
            inspection = Inspection(path, sidecar, plan, sinks)
            result = inspection.run()
        if sinks is not None and result.ok:
            sinks.keep(encoder.fingerprint(plan.max_length) if encoder and level != "quick" else None)
    finally:
        if sinks is not None:
            sinks.close()
    verdict = base | _verdict_part(result)
    if inspection.masks:
        verdict["mask"] = inspection.masks
    if claim_folder is None and inspection.audit is not None:
        verdict["audit"] = {"at": iso_now(), "report": None, **inspection.audit}
    return verdict, result.ok


def _looks(
    workspace: Workspace, settings: Settings, level: str, claim: Path | None
) -> "AbstractContextManager[Looks | None]":
    if level == "quick":
        return nullcontext()
    from core.validation.audit import looks_for  # loads what compares rows, which takes longer than level quick

    return looks_for(workspace, settings, level, claim)


def _encoder_or_none(workspace: Workspace, settings: Settings, *, needed: bool) -> ChatEncoder | None:
    try:
        return encoder_for(workspace, settings)
    except EncoderMissingError:
        if needed:
            raise
        return None


def _verdict_part(result: ValidationResult) -> dict[str, Any]:
    stats = dict(result.stats)
    counts = ("rows", "rows_train", "rows_held_out", "rows_set_aside", "rows_dropped", "sha256", "bytes", "spec")
    message = result.message
    if result.ok:
        message = f"accepted: {stats['rows_train']} rows to train, {stats['rows_held_out']} held out"
    return {
        **{key: stats[key] for key in (*counts, "tokens")},
        "code": result.code,
        "message": message,
        "line": result.line,
        "column": result.column,
        "field": result.field,
        "fix": result.fix,
        "issues": [dict(issue) for issue in result.issues],
    }


def _words(problem: RowProblem) -> dict[str, Any]:
    return {"code": problem.code, "message": problem.message, "field": problem.field, "fix": problem.fix}


def _refused_by_sidecar(path: Path, base: dict[str, Any], error: SidecarError) -> dict[str, Any]:
    stats = Inspection(path, Sidecar(), Plan(specs={}, detect_specs=(), content=False)).count_only()
    counts = {key: stats[key] for key in ("rows", "rows_set_aside", "sha256", "bytes")}
    issue: dict[str, Any] = {
        "validator": "SpecValidator",
        "version": VALIDATOR_VERSIONS["SpecValidator"],
        "severity": "error",
    }
    issue |= {"code": error.slug, "count": 1, "examples": []}
    words = _words(RowProblem(error.slug, error.message, None, error.field, error.fix or None))
    return base | counts | words | {"issues": [issue]}


def _unreadable(error: OSError, path: Path) -> dict[str, Any]:
    elsewhere = error.filename is not None and os.fsdecode(error.filename) != str(path)
    what = display_name(error.filename) if elsewhere else "the file"
    words = f"{what} cannot be read: {error.strerror or error}"
    changed = error.errno == errno.EBUSY
    fix = "let its writer finish, then retry" if changed else "check the disk and the file's permissions, then retry"
    return _words(RowProblem("unreadable", words, fix=fix))


def _missing(error: ResourceError) -> dict[str, Any]:
    fix = f"{error.fix}, then dropforge retry JOB_ID" if error.fix else None
    return _words(RowProblem(error.slug, error.message, fix=fix))


def _gate_error(error: Exception) -> dict[str, Any]:
    """A refusal that shows no text of a row: the trace goes to the log without the error's own words."""
    frames = "".join(traceback.format_tb(error.__traceback__)[-6:])
    _log.error("the gate raised %s and refuses the file\n%s", type(error).__name__, frames)
    if isinstance(error, DropforgeError):
        return _words(RowProblem("gate_error", str(error), fix=error.fix or None))
    words = f"the gate itself failed ({type(error).__name__}); the file is not trained"
    return _words(RowProblem("gate_error", words, fix="see status/logs; report it with the file if you can"))


def _write_sidecar(path: Path, sidecar: Sidecar, verdict: dict[str, Any], passed: bool) -> None:
    """Add the daemon's part to the sidecar; a sidecar that was refused stays as its producer wrote it."""
    target = path.with_name(path.name + SIDECAR_SUFFIX)
    if not sidecar.doc and (os.path.lexists(target) or verdict["code"] == "spec_unknown"):
        return  # the daemon may still be waiting for the producer's own
    errors = [i for i in verdict["issues"] if i["severity"] == "error"]
    additions = {
        "validated_at": iso_now(),
        "validator_versions": VALIDATOR_VERSIONS,
        "validation_passed": passed,
        "validation_errors": errors,
        "validation_warnings": [i for i in verdict["issues"] if i["severity"] == "warning"],
        "job_id": verdict["job_id"],
    }
    try:
        write_json(target, merged(sidecar, additions))
    except StorageError as error:  # a name of 255 bytes leaves no room for the suffix
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENAMETOOLONG:
            raise


def _outcome(verdict: dict[str, Any], state: str, lane: str) -> GateOutcome:
    return GateOutcome(verdict | {"state": state}, state, lane)
