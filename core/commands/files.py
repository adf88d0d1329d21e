"""Commands about files of rows: check them, hand them over. Beside the arrows: `submit` is the arrow into the inbox.

Reads    the named files and their sidecars; queue/ and inbox/rejected/ with --wait
Writes   inbox/, by core.drop          Units  seconds
Errors   UsageError for a file that cannot be taken; exit 5 when a file was refused
"""

import time
from pathlib import Path
from typing import Any  # verdicts are JSON

import click

from core.commands.invocation import common_options, current, finish
from core.commands.output import coloured, say
from core.drop import Dropped, drop, sidecar_beside
from core.errors import AnswerNoError, UsageError
from core.formats import SUFFIXES
from core.paths import Workspace, display_name
from core.verdicts import job_ids, verdict_of

_POLL_S = 0.2
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
    for path in files:
        _require_takeable(path)
    known = job_ids(workspace)
    facts = _sidecar_facts(spec, priority, generator)
    dropped = [drop(workspace, path, priority=priority, sidecar=sidecar_beside(path) | facts) for path in files]
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
@common_options
def check_command(files: tuple[Path, ...], level: str | None, spec: str | None, show_mask: int) -> None:
    """Run both gates over files where they lie; nothing is moved (exit 5 when one is refused)."""
    from core.validation.gate import check_file  # loads numpy and tokenizers: not for --help

    workspace = current().workspace()
    settings = current().settings(workspace)
    for path in files:
        _require_takeable(path)
    verdicts = [check_file(path, settings, workspace, level, spec, show_mask=show_mask) for path in files]
    current().show({"files": verdicts}, lambda: _show_checked(verdicts))
    if any(verdict["state"] == "rejected" for verdict in verdicts):
        finish(AnswerNoError.exit_code)


def _show_checked(verdicts: list[dict[str, Any]]) -> None:
    for verdict in verdicts:
        show_verdict(verdict)
        for row in verdict.get("mask") or []:
            pieces = "".join(_piece(piece) for piece in row["pieces"])
            click.echo(f"  line {row['line']}: {pieces}")


def _piece(piece: dict[str, Any]) -> str:
    """Text that is trained stands in green, and in brackets for whoever sees no colour."""
    text = display_name(str(piece["text"]))
    return click.style(f"[{text}]", fg="green") if piece["trained"] else text


def _require_takeable(path: Path) -> None:
    if not path.is_file():
        raise UsageError("no such file", where=str(path), fix="name an existing file")
    if not path.name.endswith(tuple(SUFFIXES)) or path.name.startswith("."):
        raise UsageError("the inbox does not take this name", where=str(path), fix=f"use {' or '.join(SUFFIXES)}")


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
    found: dict[str, dict[str, Any]] = {}
    last: dict[str, str] = {}
    wanted = {display_name(d.path.name): d.sha256 for d in dropped}  # verdicts name files as they are shown
    while len(found) < len(wanted):
        for job_id in sorted(job_ids(workspace) - known):
            verdict = verdict_of(workspace, job_id)
            name, state = verdict["file"], verdict["state"]
            if name not in wanted or wanted[name] != verdict["sha256"]:  # also one that is claimed and not yet read
                continue
            if last.get(name) != state:
                click.echo(f"{name}: {state}", err=True)
            last[name] = state
            if state in _ENDED:
                found[name] = verdict
                known.add(job_id)
        time.sleep(_POLL_S)
    return [found[display_name(d.path.name)] for d in dropped]


def _show(dropped: list[Dropped], verdicts: list[dict[str, Any] | None]) -> None:
    for file, verdict in zip(dropped, verdicts, strict=True):
        if verdict is None:
            say(f"{file.path.name}: in the inbox ({file.bytes} bytes)")
        else:
            show_verdict(verdict)


def show_verdict(verdict: dict[str, Any]) -> None:
    """A verdict in the lines a person needs: what, where, how to mend."""
    state = verdict["state"] or "accepted"
    click.echo(f"{display_name(str(verdict['file']))}: {coloured(state)} ({verdict['code']}), {verdict['rows']} rows")
    if verdict["message"]:
        say(f"  {verdict['message']}")
    if verdict["fix"]:
        say(f"  fix: {verdict['fix']}")
    for issue in verdict["issues"]:
        lines = ", ".join(str(n) for n in issue["examples"][:5])
        say(f"  {issue['severity']}: {issue['code']} x{issue['count']}" + (f" (lines {lines})" if lines else ""))
        if "message" in issue:
            say(f"    {issue['message']}")
