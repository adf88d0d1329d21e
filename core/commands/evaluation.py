"""Commands that have something measured: compare, evaluate, suite add. Beside the arrows: the CLI of the judge.

Reads    checkpoints/<run>/, the items of a new suite
Writes   config/suites/.incoming-<name>/ and a request file; the daemon puts the suite in its place
Errors   UsageError naming line and field of a suite's file, as the judge reads it; NotFoundError for an unknown
         checkpoint
Effects  what needs torch runs as `python -m trainer.evaluate`, never in this process
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import click

from core.atomic import rename_durable, storage_error, write_bytes, write_json
from core.checkpoints import Catalogue
from core.commands.invocation import common_options, current
from core.commands.orders import request
from core.commands.processes import become
from core.errors import InternalError, UsageError
from core.paths import Workspace

METRICS = ("exact_match", "accuracy", "score", "loss", "perplexity", "bits_per_token")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
suite_option = click.option("--suite", metavar="S", help="Only this suite.")


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@suite_option
@common_options
def compare_command(first: str, second: str, suite: str | None) -> None:
    """Measure two checkpoints on the same items and name the better one, if one is."""
    workspace = current().workspace()
    catalogue = Catalogue(workspace, current().settings(workspace).run)
    options = ["--compare", catalogue.get(first).id, catalogue.get(second).id]
    options += ["--suite", suite] if suite else []
    become("trainer.evaluate", *options, *(["--json"] if current().as_json else []))


@click.command("evaluate")
@click.argument("wanted", metavar="ID")
@suite_option
@common_options
def evaluate_command(wanted: str, suite: str | None) -> None:
    """Have the daemon judge a checkpoint (again)."""
    workspace = current().workspace()
    checkpoint = Catalogue(workspace, current().settings(workspace).run).get(wanted)
    request("evaluate", checkpoint.id, **({"suite": suite} if suite else {}))


@click.group("suite")
def suite_command() -> None:
    """Evaluation suites of your own: they decide what is promoted."""


@suite_command.command("add")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="S", help="Its name; the file's name without suffix otherwise.")
@click.option("--metric", type=click.Choice(METRICS), default="exact_match", show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1, 512), help="Longest answer; from the expected ones otherwise.")
@common_options
def add_command(file: Path, name: str | None, metric: str, max_new_tokens: int | None) -> None:
    """Add a file of items: JSON lines {id, messages | prompt, expected, grader, tags}."""
    workspace = current().workspace()
    wanted = name or file.stem
    if not _NAME.fullmatch(wanted):
        raise UsageError(f"{wanted!r} is no name for a suite", fix="--name: small letters, digits, - and _")
    head = {"name": wanted, "version": 1, "metric": metric, "role": "primary"}
    _stage(workspace, wanted, head | ({"max_new_tokens": max_new_tokens} if max_new_tokens else {}), file)
    request("suite", wanted)


def _stage(workspace: Workspace, name: str, head: dict[str, object], file: Path) -> None:
    """Write the suite complete beside its place: the daemon renames it in. Raises UsageError for what is no suite."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(file), fix="name a readable file") from error
    staged = workspace.own_suites_dir / f".incoming-{name}"
    aside = workspace.own_suites_dir / f".{secrets.token_hex(6)}.tmp"
    made = aside / name
    try:
        made.mkdir(parents=True)
        write_bytes(made / "items.jsonl", content)
        write_json(made / "suite.json", head)
        _check(made, file)
        if staged.exists():
            shutil.rmtree(staged)
        rename_durable(made, staged)
    except OSError as error:
        raise storage_error(error, staged) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check(made: Path, file: Path) -> None:
    """Have the judge read the suite: only its room knows the graders. Raises UsageError with what it says."""
    argv = [sys.executable, "-m", "trainer.evaluate", "--check-suite", str(made), "--json"]
    done = subprocess.run(argv, env=os.environ, capture_output=True, text=True, check=False)
    try:
        said = json.loads(done.stdout)["error"]
    except (ValueError, KeyError) as error:
        raise InternalError(f"the suite could not be checked: {done.stderr[-300:]}", where=str(file)) from error
    if said is not None:
        where = str(said["where"] or "").replace(str(made / "items.jsonl"), str(file))
        fix = str(said["fix"] or "one JSON object a line, in UTF-8")
        raise UsageError(str(said["message"]), where=where or str(file), fix=fix)
