"""Commands about the root itself: make one, show and check its settings. Beside the arrows: the CLI.

Reads    config/schemas/config.schema.json, config.json          Writes  a new root: config.json, folders, tokenizer
Errors   ConfigError (settings refused), UsageError (the folder is a root already), StorageError
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import click

from core.atomic import storage_error, write_json
from core.commands.invocation import common_options, current
from core.commands.output import say
from core.errors import ModelError, UsageError
from core.paths import Workspace, builtin_config
from core.settings import config_schema, settings_from, with_defaults

_SCHEMA_LINE = "$schema"


@click.command("init")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@common_options
def init_command(folder: Path) -> None:
    """Make a new root: a complete config.json, the folders and the embedded model's tokenizer."""
    workspace = Workspace(folder.absolute())
    if workspace.config_file.exists():
        raise UsageError("this folder is a root already", where=str(workspace.root), fix="choose another folder")
    settings = settings_from(with_defaults({}, config_schema()), str(workspace.config_file))
    try:
        workspace.make_folders()
    except OSError as error:
        raise storage_error(error, workspace.root) from error
    _make_tokenizer(workspace.resolve(settings.model_path))
    schema = os.path.relpath(builtin_config() / "schemas" / "config.schema.json", workspace.root)
    write_json(workspace.config_file, {_SCHEMA_LINE: schema, **settings.raw})
    doc = {"root": str(workspace.root), "config": str(workspace.config_file)}
    current().show(doc, lambda: _show_next_steps(workspace.root))


def _make_tokenizer(folder: Path) -> None:
    """Have the trainer's room write the embedded tokenizer; it needs no torch."""
    argv = [sys.executable, "-m", "trainer.models.tiny_tokenizer", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ModelError(
            f"the embedded tokenizer could not be made: {said[-1] if said else done.returncode}", where=str(folder)
        )


def _show_next_steps(root: Path) -> None:
    say(f"made {root}")
    say(f"  start it:    dropforge up --root {root}")
    say(f"  feed it:     cp rows.jsonl {root}/inbox/")
    say(f"  settings:    {root}/config.json (dropforge config show --root {root})")


@click.group("config", invoke_without_command=True)
@common_options
@click.pass_context
def config_command(context: click.Context) -> None:
    """Show or check the settings (file < environment < --set)."""
    if context.invoked_subcommand is None:
        _show()


@config_command.command("show")
@common_options
def show_command() -> None:
    """Print every setting as it is in force, defaults included."""
    _show()


def _show() -> None:
    settings = current().settings(current().workspace())
    click.echo(json.dumps(settings.raw, indent=1))


@config_command.command("check")
@common_options
def check_command() -> None:
    """Say whether the settings are valid; exit 2 naming the key when they are not."""
    workspace = current().workspace()
    settings = current().settings(workspace)
    doc = {"ok": True, "config": str(workspace.config_file), "sha256": settings.sha256}
    current().show(doc, lambda: say(f"ok: {workspace.config_file}"))
