"""`dropforge verify`: were the promises kept? Beside the arrows: the CLI.

Reads    everything of a root, through core.verification          Errors  exit 5 when a promise is broken
"""

from typing import Any  # the answer is a JSON document

import click

from core.commands.invocation import common_options, current, finish
from core.commands.output import coloured, say, table
from core.errors import AnswerNoError
from core.paths import Workspace
from core.status import STALE_AFTER_S, age_s, read_status
from core.verification import verify

_LOOKS = 3  # a running daemon moves jobs between our reads: what is really broken is so each time


@click.command("verify")
@click.argument("wanted", metavar="[ID]", required=False)
@common_options
def verify_command(wanted: str | None) -> None:
    """Recount every trained row and re-hash every file, or only those of one checkpoint; exit 5 on a broken promise."""
    workspace = current().workspace()
    run = current().settings(workspace).run
    doc = verify(workspace, run, wanted)
    for _ in range(_LOOKS - 1):
        if doc["ok"] or not _daemon_runs(workspace):
            break
        doc = verify(workspace, run, wanted)
    current().show(doc, lambda: _show(doc))
    if not doc["ok"]:
        finish(AnswerNoError.exit_code)


def _daemon_runs(workspace: Workspace) -> bool:
    daemon = read_status(workspace.status_file("daemon.json")) or {}
    age = age_s(daemon.get("heartbeat"))
    return daemon.get("state") != "stopped" and age is not None and age < STALE_AFTER_S


def _show(doc: dict[str, Any]) -> None:
    columns = ("file", "state", "rows", "train", "held out", "epochs", "row passes")
    keys = ("file", "state", "rows", "rows_train", "rows_held_out", "epochs", "rows_trained")
    if doc["files"]:
        table(columns, [[file[key] for key in keys] for file in doc["files"]])
    say(f"{len(doc['checkpoints'])} checkpoints, {len(doc['files'])} files")
    for problem in doc["problems"]:
        click.echo(f"{coloured('FAIL')} ", nl=False)
        say(problem)
    if doc["ok"]:
        click.echo(f"{coloured('ok')}: every promise is kept")
