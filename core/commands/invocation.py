"""What every sub-command is told: the root, the overrides, how to print. Beside the arrows: the CLI.

Reads    config.json and the environment, once, when a command asks for its settings
Writes   stdout: one JSON document with --json, lines for a person without it
Errors   ConfigError when no root is found or the settings are refused
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar  # Any: a JSON document has any shape

import click

from core.paths import Workspace, find_root
from core.settings import ENV_PREFIX, Settings, load_settings

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Invocation:
    """The options that stand before or after any verb."""

    root: Path | None
    overrides: tuple[str, ...]
    as_json: bool

    def workspace(self) -> Workspace:
        """The root's folders. Raises ConfigError when there is no root."""
        return Workspace(find_root(self.root))

    def settings(self, workspace: Workspace) -> Settings:
        """The merged settings. Raises ConfigError naming the refused key."""
        return load_settings(workspace, self.overrides)

    def environment(self) -> dict[str, str]:
        """The overrides as variables, so that child processes and theirs take them without a word in their argv."""
        pairs = (override.partition("=") for override in self.overrides)
        return {ENV_PREFIX + key.strip().upper().replace(".", "__"): value for key, _, value in pairs}

    def show(self, doc: dict[str, Any], lines: Callable[[], None]) -> None:
        """Print the document with --json, else call `lines`, which prints for a person."""
        if self.as_json:
            click.echo(json.dumps(doc, indent=1))
        else:
            lines()


def common_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add --root, --set, --json to a command; `current()` gives them, merged with those before the verb."""
    for option in (
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="Print one JSON document.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            expose_value=False,
            callback=_keep,
            help="Override a setting, e.g. hyperparams.epochs=3 (repeatable).",
        ),
        click.option(
            "--root",
            type=click.Path(path_type=Path),
            metavar="DIR",
            expose_value=False,
            callback=_keep,
            help="The folder that holds config.json.",
        ),
    ):
        function = option(function)
    return function


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> object:
    """Collect the common options of all levels in the root context, the inner level winning."""
    if value not in (None, (), False):
        kept = context.find_root().ensure_object(dict)
        if parameter.name == "overrides" and isinstance(value, tuple):
            value = (*kept.get("overrides", ()), *value)
        kept[parameter.name] = value
    return value


def current() -> Invocation:
    """The common options of the command that is running."""
    kept: dict[str, Any] = click.get_current_context().find_root().ensure_object(dict)
    return Invocation(kept.get("root"), tuple(kept.get("overrides", ())), bool(kept.get("as_json")))


def finish(code: int) -> NoReturn:
    """End the running command with an exit code of the contract."""
    click.get_current_context().exit(code)
