"""`dropforge verify`: were the promises kept? Beside the arrows: the CLI.

Reads    everything of a root, through core.verification          Writes  status/ledger.db with --rebuild
Errors   exit 5 when a promise is broken; AlreadyRunningError for --rebuild beside a running daemon
"""

from typing import Any  # the answer is a JSON document

import click

from core.commands.invocation import common_options, current, finish
from core.commands.liveness import daemon_runs
from core.commands.output import coloured, say, shortened, table
from core.daemon.pid_manager import InstanceLock
from core.errors import AnswerNoError
from core.paths import Workspace
from core.settings import Settings

_LOOKS = 3  # a running daemon moves jobs between our reads: what is really broken is so each time


@click.command("verify")
@click.argument("wanted", metavar="[ID]", required=False)
@click.option("--rebuild", is_flag=True, help="Make status/ledger.db anew from the folders first (daemon stopped).")
@common_options
def verify_command(wanted: str | None, rebuild: bool) -> None:
    """Recount every trained row and re-hash every file, or only those of one checkpoint; exit 5 on a broken promise."""
    from core.verification import verify  # loads numpy and tokenizers: not for --help

    workspace = current().workspace()
    settings = current().settings(workspace)
    run = settings.run
    if rebuild:
        _rebuild_ledger(workspace, settings)
    doc = verify(workspace, run, wanted)
    for _ in range(_LOOKS - 1):
        if doc["ok"] or not daemon_runs(workspace):
            break
        doc = verify(workspace, run, wanted)
    current().show(doc, lambda: _show(doc))
    if not doc["ok"]:
        finish(AnswerNoError.exit_code)


def _rebuild_ledger(workspace: Workspace, settings: Settings) -> None:
    """The daemon is the ledger's one writer: hold its lock while writing. Raises AlreadyRunningError."""
    from core import ledger  # loads sqlalchemy: not for --help

    lock = InstanceLock.acquire(workspace.lock_file, wait_s=0.0)
    try:
        rows = ledger.rebuild(workspace, ledger.ledger_url(workspace, settings))
    finally:
        lock.release()
    click.echo("ledger rebuilt: " + ", ".join(f"{name} {count}" for name, count in rows.items()), err=True)


def _show(doc: dict[str, Any]) -> None:
    columns = ("file", "state", "rows", "train", "held out", "epochs", "row passes")
    keys = ("state", "rows", "rows_train", "rows_held_out", "epochs", "rows_trained")
    if doc["files"]:
        table(columns, [[shortened(str(file["file"])), *(file[key] for key in keys)] for file in doc["files"]])
    say(f"{len(doc['checkpoints'])} checkpoints, {len(doc['files'])} files")
    for problem in doc["problems"]:
        click.echo(f"{coloured('FAIL')} ", nl=False)
        say(problem)
    if doc["ok"]:
        click.echo(f"{coloured('ok')}: every promise is kept")
