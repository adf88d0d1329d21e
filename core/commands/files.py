"""Commands about files of rows: check them, hand them over. Beside the arrows: `submit` is the arrow into the inbox.

Reads    the named files and their sidecars; queue/ and inbox/rejected/ with --wait
Writes   inbox/, by core.drop          Units  seconds
Errors   UsageError for a file that cannot be taken; exit 5 when a file was refused
"""

import os
import stat
import time
from pathlib import Path
from typing import Any  # verdicts are JSON

import click

from core.atomic import storage_error
from core.commands.invocation import common_options, current, finish
from core.commands.liveness import daemon_runs
from core.commands.output import facts, say
from core.commands.verdict_view import show_mask, show_verdict
from core.daemon.candidates import why_ignored
from core.drop import Dropped, drop, require_droppable, sidecar_beside
from core.errors import AnswerNoError, DataError, DropforgeError, NotFoundError, UsageError
from core.formats import SUFFIXES
from core.job_queue import SIDECAR_SUFFIX, new_verdict
from core.paths import Workspace, display_name
from core.verdicts import job_ids, verdict_of

_POLL_S = 0.2
_MASKS_REPORTED = 3
_COLUMNS_SHOWN = 20
_ENDED = ("done", "rejected", "failed", "held")
_files_argument = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.command("submit")
@_files_argument
@click.option("--spec", metavar="ID", help="The spec of the rows, e.g. chat_sft_v1.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True)
@click.option("--generator", metavar="ID@VERSION", help="What made the rows.")
@click.option("--wait", is_flag=True, help="Return when every file is trained or refused (exit 5 then).")
@common_options
def submit_command(files: tuple[Path, ...], spec: str | None, priority: str, generator: str | None, wait: bool) -> None:
    """Copy files into the inbox."""
    workspace = current().workspace()
    files = _without_sidecars(files)
    beside = _prepared(workspace, files)
    known = job_ids(workspace) if wait else set()
    told = _sidecar_facts(spec, priority, generator)
    dropped: list[Dropped] = []
    try:
        for path, facts_beside in zip(files, beside, strict=True):
            dropped.append(drop(workspace, path, priority=priority, sidecar=facts_beside | told))
    except DropforgeError:
        for done in dropped:  # the error names the next one; those that follow it were not tried
            click.echo(f"{display_name(done.path.name)}: in the inbox", err=True)
        raise
    nothing: list[dict[str, Any] | None] = [None] * len(dropped)
    verdicts = _wait(workspace, dropped, known) if wait else nothing
    entries = [
        {"file": d.path.name, "sha256": d.sha256, "job_id": v["job_id"] if v else None}
        for d, v in zip(dropped, verdicts, strict=True)
    ]
    current().show({"files": entries}, lambda: _show(dropped, verdicts))
    refused = [v for v in verdicts if v and v["state"] != "done"]
    if refused:
        finish(AnswerNoError.exit_code)


@click.command("check")
@_files_argument
@click.option(
    "--level", type=click.Choice(["quick", "standard", "deep"]), help="How thoroughly; as in the settings otherwise."
)
@click.option("--spec", metavar="ID", help="The spec of the rows, e.g. chat_sft_v1.")
@click.option(
    "--show-mask", type=click.IntRange(0), default=0, metavar="N", help="Show which text of N rows is trained."
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write what was found as a page.")
@click.option("--stats", is_flag=True, help="Only size, rows and columns, from what the file says of itself: fast.")
@common_options
def check_command(
    files: tuple[Path, ...], level: str | None, spec: str | None, show_mask: int, report: Path | None, stats: bool
) -> None:
    """Run both gates over files where they lie; nothing is moved (exit 5 when one is refused)."""
    files = _without_sidecars(files)
    if stats:
        _show_stats(files)
        return
    if report is not None and len(files) > 1:
        raise UsageError("one report tells of one file", where="--report", fix="check the files one by one")
    from core.validation.gate import check_file  # loads numpy and tokenizers: not for --help

    workspace = current().workspace()
    settings = current().settings(workspace)
    masks = max(show_mask, _MASKS_REPORTED if report is not None else 0)
    not_taken = [_not_taken(path) for path in files]
    verdicts = [
        verdict or check_file(path, settings, workspace, level, spec, show_mask=masks)
        for path, verdict in zip(files, not_taken, strict=True)
    ]
    if report is not None:
        _write_report(report, verdicts[0])
    current().show({"files": verdicts}, lambda: _show_checked(verdicts, show_mask, report))
    if any(v["state"] == "rejected" and not left for v, left in zip(verdicts, not_taken, strict=True)):
        finish(AnswerNoError.exit_code)
    if any(not_taken):
        finish(UsageError.exit_code)


def _write_report(target: Path, verdict: dict[str, Any]) -> None:
    from core.validation.audit_page import page  # loads jinja2

    try:
        target.write_text(page(verdict), encoding="utf-8")
    except OSError as error:
        raise storage_error(error, target) from error


def _show_checked(verdicts: list[dict[str, Any]], masks: int, report: Path | None) -> None:
    for verdict in verdicts:
        show_verdict(verdict)
        show_mask(verdict, masks)
    if report is not None:
        say(f"report: {report}")


def _show_stats(files: tuple[Path, ...]) -> None:
    """What files say of themselves; no root and no tokenizer is needed."""
    from core.formats import file_stats  # loads numpy

    found, code = [], 0
    for path in files:
        try:
            _require_takeable(path)
            found.append(file_stats(path))
        except (UsageError, DataError) as error:
            click.echo(f"error: {display_name(str(error))}", err=True)
            code = max(code, error.exit_code)
    current().show({"files": found}, lambda: _show_facts(found))
    if code:
        finish(code)


def _show_facts(found: list[dict[str, Any]]) -> None:
    """A few facts of each file; how many columns there are matters more than the names of thousands."""
    for entry in found:
        columns = [str(name) for name in entry["columns"]]
        more = ", ..." if len(columns) > _COLUMNS_SHOWN else ""
        say(entry["file"])
        plain = [(f"  {name}", value) for name, value in entry.items() if name not in ("file", "columns")]
        facts([*plain, ("  columns", f"{len(columns)}: {', '.join(columns[:_COLUMNS_SHOWN])}{more}")])


def _without_sidecars(files: tuple[Path, ...]) -> tuple[Path, ...]:
    """The files to look at: `FOLDER/*` names sidecars too, which are read with their files."""
    beside = {path.with_name(path.name + SIDECAR_SUFFIX) for path in files if path.name}
    return tuple(path for path in files if path not in beside)


def _prepared(workspace: Workspace, files: tuple[Path, ...]) -> list[dict[str, object]]:
    """The producer's facts that lie beside each file; asked before the first is dropped, so that all are or none.

    Raises:
        UsageError: one of them cannot be dropped; several are named on stderr.
    """
    beside, refused = [], []
    for path in files:
        try:
            _require_takeable(path)
            require_droppable(workspace, path)
            beside.append(sidecar_beside(path))
        except UsageError as error:
            refused.append(error)
    for one in refused[:-1]:
        click.echo(f"error: {display_name(str(one))}", err=True)
    if refused:
        last, nothing = refused[-1], "; nothing was dropped" if len(files) > 1 else ""
        raise UsageError(f"{last.message}{nothing}", where=last.where, fix=last.fix)
    return beside


def _not_taken(path: Path) -> dict[str, Any] | None:
    """A verdict of what the gates never see, because the inbox would not take it; None when it would."""
    try:
        _require_takeable(path)
    except UsageError as error:
        code = error.slug if isinstance(error, NotFoundError) else "unsupported"
        name = display_name(path.name or path)
        return new_verdict(file=name, state="rejected", code=code, message=error.message, fix=error.fix)
    return None


def _require_takeable(path: Path) -> None:
    """Raises UsageError: there is no such file, or the inbox would not take it."""
    try:
        status = os.stat(path)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        words = "no such file" if absent else f"cannot be looked at: {error.strerror}"
        raise NotFoundError(words, where=str(path), fix="name an existing file") from error
    if path.name.endswith(SIDECAR_SUFFIX):
        fix = f"name {display_name(path.name.removesuffix(SIDECAR_SUFFIX))}: its sidecar is read with it"
        raise UsageError("this is a sidecar", where=str(path), fix=fix)
    if reason := why_ignored(path.name, status, SUFFIXES):
        fix = "rename it" if stat.S_ISREG(status.st_mode) else "name a file"
        raise UsageError(f"the inbox does not take it: {reason}", where=str(path), fix=fix)


def _sidecar_facts(spec: str | None, priority: str, generator: str | None) -> dict[str, object]:
    facts: dict[str, object] = {}
    if spec:
        facts["spec"] = spec
    if priority != "normal":
        facts["priority"] = priority
    if generator:
        name, _, version = generator.partition("@")
        facts |= {"generator_id": name} | ({"generator_version": version} if version else {})
    return facts


def _wait(workspace: Workspace, dropped: list[Dropped], known: set[str]) -> list[dict[str, Any] | None]:
    """Poll until each dropped file has a final verdict; tells a person of each change of state on stderr."""
    if not daemon_runs(workspace):
        click.echo("no daemon runs in this root: waiting until one does (dropforge up)", err=True)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    last: dict[tuple[str, str], str] = {}
    wanted = {(display_name(d.path.name), d.sha256) for d in dropped}  # verdicts name files as they are shown
    while len(found) < len(wanted):
        for job_id in sorted(job_ids(workspace) - known):
            verdict = verdict_of(workspace, job_id)
            one, state = (verdict["file"], verdict["sha256"]), verdict["state"]
            if one not in wanted:  # somebody else's, or claimed and not yet read
                continue
            if last.get(one) != state:
                click.echo(f"{one[0]}: {state}", err=True)
            last[one] = state
            if state in _ENDED:
                found[one] = verdict
                known.add(job_id)
        time.sleep(_POLL_S)
    return [found[display_name(d.path.name), d.sha256] for d in dropped]


def _show(dropped: list[Dropped], verdicts: list[dict[str, Any] | None]) -> None:
    for file, verdict in zip(dropped, verdicts, strict=True):
        if verdict is None:
            say(f"{file.path.name}: in the inbox ({file.bytes} bytes)")
        else:
            show_verdict(verdict)
