"""From a finished drop to the first optimizer step of a warm trainer, through a real daemon.

    python -m scripts.bench.drop [--drops 5] [--rows 1000] [--words 80] [--settle 2]

Drops files of so many rows with answers of so many made-up words, one after the other, each when everything rests.
Prints where the time of each went, read from status/events.jsonl (queued) and metrics.jsonl (first step, taken), then
the medians. The first file is not counted: it warms gates and trainer.
"""

import argparse
import datetime
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from core.paths import Workspace
from core.status import read_status
from scripts.reliability.intake_farm import REPOSITORY, make_root
from scripts.reliability.training_farm import chat

_LIMIT_S = 120.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds since the drop."""

    queued: float
    stepped: float


def main() -> int:
    """Print one line a drop, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drops", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--words", type=int, default=80)
    parser.add_argument("--settle", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = _prepare(Path(folder) / "root", options.settle)
        argv = [sys.executable, "-m", "core.daemon", "--root", str(workspace.root)]
        daemon = subprocess.Popen(argv, cwd=REPOSITORY, env=os.environ, stderr=subprocess.DEVNULL)
        try:
            taken = [_drop(workspace, number, options.rows, options.words) for number in range(options.drops + 1)][1:]
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(120)
    for times in taken:
        print(f"queued after {times.queued:.2f} s, first step taken after {times.stepped:.2f} s")
    median = statistics.median(times.stepped for times in taken)
    queued = statistics.median(times.queued for times in taken)
    print(
        f"median of {len(taken)} drops of {options.rows} rows: queued {queued:.2f} s, first step {median:.2f} s =",
        end=" ",
    )
    print(f"settle time {options.settle:g} s + {median - options.settle:.2f} s")
    return 0


def _prepare(root: Path, settle_s: float) -> Workspace:
    workspace = make_root(root)
    document = json.loads(workspace.config_file.read_text())
    document["inbox"]["settle_s"] = settle_s
    document["validation"].pop("level")  # as a user has it
    workspace.config_file.write_text(json.dumps(document))
    return workspace


def _rows(seed: int, count: int, words: int) -> list[dict[str, Any]]:
    """Rows of words drawn from 5,000 made-up ones, so that the tokenizer meets old words and new ones as in prose."""
    draw = random.Random(seed)  # noqa: S311  # made-up text needs no secrecy
    known = ["".join(draw.choices("aeioulnrst", k=draw.randint(2, 9))) for _ in range(5000)]
    return [chat(f"what is {n}?", " ".join(draw.choices(known, k=words))) for n in range(count)]


def _drop(workspace: Workspace, number: int, rows: int, words: int) -> Times:
    """Drop a file by rename when everything rests; wait for its first step."""
    _wait(lambda: _resting(workspace), "rest")
    name = f"drop-{number}.jsonl"
    aside = workspace.inbox / f".{name}.tmp"
    aside.write_text("".join(json.dumps(row) + "\n" for row in _rows(number, rows, words)))
    aside.rename(workspace.inbox / name)
    began = time.time()
    events = workspace.status_file("events.jsonl")
    job = _wait(lambda: _find(events, lambda e: e["kind"] == "job_queued" and e.get("file") == name), "the queue")
    steps = workspace.metrics_file("main")
    step = _wait(lambda: _find(steps, lambda line: line["job_id"] == job["job_id"]), "the first step")
    return Times(_seconds(job["time"]) - began, _seconds(step["time"]) - began)


def _resting(workspace: Workspace) -> bool:
    daemon = read_status(workspace.status_file("daemon.json")) or {}
    trainer = read_status(workspace.status_file("training_status.json")) or {}
    return daemon.get("state") == "idle" and not daemon.get("judging") and trainer.get("status") == "idle"


def _find(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((doc for doc in map(json.loads, lines) if wanted(doc)), None)


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def _wait(look: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + _LIMIT_S
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_LIMIT_S:g} s for {what}")
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    sys.exit(main())
