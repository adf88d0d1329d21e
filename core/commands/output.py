"""How answers look: tables and colours on a terminal, plain aligned lines in a pipe. Beside the arrows: the CLI.

Writes   stdout          Effects  untrusted text (file names, messages, generators) is shown on one line, escaped
"""

import sys
from collections.abc import Sequence

import click

from core.paths import display_name

COLOURS = {
    "PASS": "green",
    "ok": "green",
    "done": "green",
    "training": "green",
    "promote": "green",
    "WARN": "yellow",
    "paused": "yellow",
    "held": "yellow",
    "active": "cyan",
    "queued": "cyan",
    "FAIL": "red",
    "failed": "red",
    "rejected": "red",
    "blocked": "red",
}


def on_terminal() -> bool:
    """Whether a person sees stdout: colours and live views are for a terminal only."""
    return sys.stdout.isatty()


def say(text: str = "") -> None:
    """Print one line, escaped."""
    click.echo(display_name(text))


def coloured(word: str) -> str:
    """A state in its colour; click drops the colour when stdout is no terminal."""
    return click.style(word, fg=COLOURS.get(word))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their column names, each column as wide as its longest cell; `None` is shown as `-`."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    click.echo(click.style(_line(columns, widths), bold=True))
    for row in cells:
        padded = [click.style(c, fg=COLOURS.get(c)) + " " * (w - len(c)) for c, w in zip(row, widths, strict=True)]
        click.echo("  ".join(padded).rstrip())


def shortened(text: str, width: int = 40) -> str:
    """A long name with its middle left out: both ends tell names apart. Escaped first, so that no escape is cut."""
    shown = display_name(text)
    half = (width - 1) // 2
    return shown if len(shown) <= width else f"{shown[:half]}…{shown[-half:]}"


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Print `name  value` lines, names in one column."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        text = _cell(value)
        click.echo(f"{name.ljust(width)}  {click.style(text, fg=COLOURS.get(text))}")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return display_name(str(value))
