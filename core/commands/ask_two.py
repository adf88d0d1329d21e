"""`dropforge ask --compare A B`: one question to two checkpoints, the answers side by side as they come. Beside the
arrows: the CLI.

Reads    POST /v1/chat/completions of the server, twice at once       Writes  stdout
Errors   those of asking one; the first of two
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeVar  # Any: answers and their chunks are JSON

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from core.services import ServiceClient

_PATH = "/v1/chat/completions"
_REDRAWS_A_SECOND = 10
T = TypeVar("T")


class Side:
    """One answer on its way. Written by its own thread, read by the one that draws."""

    def __init__(self, asked: str) -> None:
        self.heading = asked
        self.text = ""

    def stream(self, url: str, body: dict[str, Any]) -> None:
        """Ask and collect. Raises as ServiceClient.stream."""
        with ServiceClient("inference", url, max_retries=1) as client:
            for chunk in client.stream(_PATH, body | {"model": self.heading, "stream": True}):
                self.heading = chunk.get("system_fingerprint") or self.heading
                for choice in chunk.get("choices", []):
                    self.text += choice["delta"].get("content") or ""


Explained = Callable[[str], AbstractContextManager[None]]  # says of an id that is not there what became of it


def both_whole(url: str, names: Sequence[str], body: dict[str, Any], explained: Explained) -> dict[str, Any]:
    """The two answers as documents: {"compare": [first, second]}."""

    def ask(name: str) -> dict[str, Any]:
        with ServiceClient("inference", url, max_retries=1) as client:
            return client.post(_PATH, body | {"model": name}, repeatable=True).json

    with ThreadPoolExecutor(2) as pool:
        return {"compare": _results(names, [pool.submit(ask, name) for name in names], explained)}


def _results(names: Sequence[str], asked: "Sequence[Future[T]]", explained: Explained) -> list[T]:
    found = []
    for name, one in zip(names, asked, strict=True):
        with explained(name):
            found.append(one.result())
    return found


def show_both(
    url: str, names: Sequence[str], body: dict[str, Any], harmless: Callable[[str], str], explained: Explained
) -> None:
    """Two columns under the ids that answered: drawn again as text comes on a terminal, once at the end in a pipe."""
    sides, console = [Side(name) for name in names], Console(highlight=False)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(side.stream, url, body) for side in sides]
        if console.is_terminal:
            _redraw(console, sides, harmless, lambda: all(one.done() for one in asked))
        _results(names, asked, explained)
    if not console.is_terminal:
        console.print(_columns(sides, harmless))


def _redraw(console: Console, sides: Sequence[Side], harmless: Callable[[str], str], done: Callable[[], bool]) -> None:
    pause = threading.Event()
    with Live(_columns(sides, harmless), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while not done():
            pause.wait(1 / _REDRAWS_A_SECOND)
            live.update(_columns(sides, harmless), refresh=True)
        live.update(_columns(sides, harmless), refresh=True)


def _columns(sides: Sequence[Side], harmless: Callable[[str], str]) -> Table:
    """A model's words may hold anything: no markup, no control characters."""
    table = Table(expand=True)
    for side in sides:
        table.add_column(Text(harmless(side.heading)), ratio=1, overflow="fold")
    table.add_row(*(Text(harmless(side.text)) for side in sides))
    return table
