"""Commands that have something measured: compare, evaluate, suite add. Beside the arrows: the CLI of the judge.

Reads    checkpoints/<run>/, the items of a new suite
Writes   config/suites/.incoming-<name>/ and a request file; the daemon puts the suite in its place
Errors   UsageError naming the line of a suite's file; NotFoundError for an unknown checkpoint
Effects  what needs torch runs as `python -m trainer.evaluate`, never in this process
"""

import re
import secrets
import shutil
from pathlib import Path

import click

from core.atomic import parse_json, rename_durable, storage_error, write_bytes, write_json
from core.checkpoints import Catalogue
from core.commands.invocation import common_options, current
from core.commands.orders import request
from core.commands.processes import become
from core.errors import UsageError
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
    content = _read_items(file)
    head = {"name": wanted, "version": 1, "metric": metric, "role": "primary"}
    _stage(workspace, wanted, head | ({"max_new_tokens": max_new_tokens} if max_new_tokens else {}), content)
    request("suite", wanted)


def _read_items(file: Path) -> bytes:
    """The file's bytes, every line a JSON object with a question and an answer. Raises UsageError, JsonError."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(file), fix="name a readable file") from error
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    for number, line in lines:
        where = f"{file}:{number}"
        item = parse_json(line, where)
        asks = isinstance(item, dict) and (
            (item.keys() & {"messages", "prompt"} and "expected" in item) or "text" in item
        )
        if not asks:
            raise UsageError("no question with an answer", where=where, fix='{"prompt": "...", "expected": "..."}')
    if not lines:
        raise UsageError("the file has no items", where=str(file), fix="one JSON object a line")
    return content


def _stage(workspace: Workspace, name: str, head: dict[str, object], content: bytes) -> None:
    """Write the suite complete beside its place: the daemon checks it and renames it in."""
    staged = workspace.own_suites_dir / f".incoming-{name}"
    aside = workspace.own_suites_dir / f".{secrets.token_hex(6)}.tmp"
    try:
        aside.mkdir(parents=True)
        write_bytes(aside / "items.jsonl", content)
        write_json(aside / "suite.json", head)
        if staged.exists():
            shutil.rmtree(staged)
        rename_durable(aside, staged)
    except OSError as error:
        raise storage_error(error, staged) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
