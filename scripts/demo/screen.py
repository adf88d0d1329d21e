"""What the demo shows on the terminal, and the claims it makes: each one is checked when it is printed.

Text from files and from the model is untrusted: printed as text, never as markup, with control characters spelled out.
"""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any  # verdicts and status files are JSON

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from core.paths import display_name

_SHOWN_CHARS = 44
_SHOWN_ENTRIES = 16
_TRAINING_LINES = 8  # progress lines where there is no terminal to draw a bar on
_VERDICT_KEYS = (
    "file", "state", "code", "message", "line", "field", "fix", "rows", "rows_train", "rows_held_out", "training",
    "effect", "checkpoint", "served",
)  # fmt: skip


def plain(text: str, limit: int = _SHOWN_CHARS) -> Text:
    """Untrusted text as one short line; line breaks are shown as ↵."""
    line = display_name(text.replace("\n", "↵"))
    return Text(line if len(line) <= limit else line[: limit - 1] + "…")


def _rounded(value: Any) -> Any:  # any JSON value
    """Numbers to four places, for the eye; the file keeps them all."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


class Screen:
    """Prints the story. `failed` holds the claims that did not hold."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.failed: list[str] = []
        self._claims = 0
        self._began = time.monotonic()

    def begin(self, at: float) -> None:
        """Count the time from `at` (time.monotonic()), the moment `up` was started."""
        self._began = at

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.rule(Text(title, style="bold"), align="left", style="dim")

    def say(self, text: str | Text, *, timed: bool = False) -> None:
        """One line; `timed` puts the seconds since `up` before it."""
        stamp = Text(f"{self.seconds:6.1f} s  " if timed else "", style="dim")
        self.console.print(stamp + (Text(text) if isinstance(text, str) else text), soft_wrap=True)

    def claim(self, holds: bool, text: str) -> bool:
        """State something that was just checked. Returns whether it holds."""
        self._claims += 1
        mark = Text("✓ ", style="bold green") if holds else Text("✗ ", style="bold red")
        self.console.print(mark + Text(text, style="" if holds else "bold red"), soft_wrap=True)
        if not holds:
            self.failed.append(text)
        return holds

    def verdict_on_claims(self) -> int:
        """The last line; returns the exit code: 0 when every claim held."""
        held = self._claims - len(self.failed)
        self.console.print()
        self.console.print(
            Text(f"{held} of {self._claims} claims hold.", style="bold red" if self.failed else "bold green")
        )
        for text in self.failed:
            self.console.print(Text(f"  does not hold: {text}", style="red"))
        return 1 if self.failed else 0

    def answers(self, asked: Sequence[dict[str, Any]], columns: dict[str, Sequence[str]]) -> None:
        """A table of questions, right answers and what the model said, one column for each time it was asked."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("question", "right", *columns):
            table.add_column(title, no_wrap=True)
        for index, item in enumerate(asked):
            question = item["messages"][-1]["content"].removeprefix("Compute: ")
            cells = [self._answer(said[index], item["expected"]) for said in columns.values()]
            table.add_row(plain(question), plain(item["expected"].split(" = ")[-1]), *cells)
        self.console.print(table)

    @staticmethod
    def _answer(said: str, expected: str) -> Text:
        if said.strip() == expected:
            return Text("✓ ", style="green") + plain(said.split(" = ")[-1])
        return Text("✗ ", style="red") + plain(said, 18)

    def verdict(self, verdict: dict[str, Any]) -> None:
        """The telling keys of a verdict.json, a line each, and a line for each suite of `effect`."""
        lines = []
        for key in _VERDICT_KEYS:
            value = _rounded(verdict.get(key))
            if key == "effect" and value:
                suites = (f"    {json.dumps(name)}: {json.dumps(told)}" for name, told in value.items())
                lines.append('  "effect": {\n' + ",\n".join(suites) + "}")
            elif value is not None:
                lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
        self.console.print(Text("{\n" + ",\n".join(lines) + "\n}"), soft_wrap=True)

    def tree(self, root: Path, folders: Iterable[Path], depth: int) -> None:
        """What lies in some folders of the root."""
        tree = Tree(Text(f"{root}/"), guide_style="dim")
        for folder in folders:
            if folder.exists():
                _branch(tree.add(Text(f"{folder.relative_to(root)}/", style="bold")), folder, depth)
        self.console.print(tree)


def _branch(tree: Tree, folder: Path, depth: int) -> None:
    entries = sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name))
    for path in entries[:_SHOWN_ENTRIES]:
        name = plain(path.name, 60)
        if path.is_symlink():
            tree.add(name + Text(f" -> {path.readlink()}", style="dim"))
        elif path.is_dir():
            branch = tree.add(name + Text("/"))
            if depth > 1:
                _branch(branch, path, depth - 1)
        else:
            tree.add(name + Text(f"  {_size(path.stat().st_size)}", style="dim"))
    if len(entries) > _SHOWN_ENTRIES:
        tree.add(Text(f"… {len(entries) - _SHOWN_ENTRIES} more", style="dim"))


def _size(size_bytes: int) -> str:
    return f"{size_bytes:,} B" if size_bytes < 10_000 else f"{size_bytes / 1000:,.0f} kB"


class TrainingBar:
    """Progress of the training job: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._bar = Progress(
            TextColumn("          training"),
            BarColumn(bar_width=30),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=screen.console,
            transient=True,
            disable=not screen.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._told = 0

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, training: dict[str, Any]) -> None:
        """Draw what status/training_status.json says."""
        step, total = training.get("current_step") or 0, training.get("total_steps") or 0
        if not (total and step and training.get("current_file")):
            return
        line = f"step {step} of {total}"
        for key, words in (("loss", "loss {:.4f}"), ("tokens_per_sec", "{:,.0f} tokens/s"), ("eta_s", "{:.0f} s left")):
            if isinstance(value := training.get(key), int | float):
                line += ", " + words.format(value)
        if self._task is None:
            self._task = self._bar.add_task(line, total=total)
        self._bar.update(self._task, completed=step, description=line, total=total)
        if not self._screen.console.is_terminal and step * _TRAINING_LINES // total > self._told:
            self._told = step * _TRAINING_LINES // total
            self._screen.say(f"training: {line}", timed=True)
