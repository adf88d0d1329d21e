"""The numbers that trainer and judge left behind, read for a report (beside all arrows).

Reads    checkpoints/<run>/metrics.jsonl, checkpoints/<run>/evaluations/<id>/{metrics.json,samples.jsonl},
         status/events.jsonl       Writes  nothing
Units    losses in nats per trained token; scores in 0..1
Errors   none on purpose: a line that cannot be read is left out, a missing file is empty
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # lines are JSON documents

from core.paths import Workspace
from core.status import read_status

# Evaluations looked at for the held-out curve: the newest ones, since each is a file of up to some thousand lines.
NEWEST_EVALUATIONS = 40
_INCOMING = "incoming"
_LOSS_METRICS = ("loss", "perplexity", "bits_per_token")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSON-lines file."""
    try:
        raw = path.read_bytes()
    except OSError:
        return
    for line in raw.split(b"\n"):
        try:
            doc = json.loads(line) if line else None
        except (ValueError, RecursionError):
            continue
        if isinstance(doc, dict):
            yield doc


def steps(workspace: Workspace, run: str) -> list[dict[str, Any]]:
    """Every surviving optimizer step in order: after an undo the same numbers come again and the later line holds."""
    kept: list[dict[str, Any]] = []
    for doc in lines(workspace.metrics_file(run)):
        if not isinstance(doc.get("step"), int) or "loss" not in doc:
            continue
        while kept and kept[-1]["step"] >= doc["step"]:
            kept.pop()
        kept.append(doc)
    return kept


@dataclass(frozen=True, slots=True)
class Judgement:
    """A commit that was scored: by (suite, item) a total and its weight: nats and tokens, or a score and 1.

    `metrics` is its metrics.json, {} for a commit that was only ever the baseline, such as the base.
    """

    id: str
    step: int
    metrics: Mapping[str, Any]
    items: Mapping[tuple[str, str], tuple[float, float]]
    by_loss: frozenset[str]  # the suites whose totals are losses: less is better


def judgements(workspace: Workspace, run: str) -> list[Judgement]:
    """The newest scored commits in the order of their steps."""
    folders = sorted(path.parent for path in workspace.evaluation_dir(run, "-").parent.glob("*/samples.jsonl"))
    steps_of = {folder: folder.name.partition("-")[0] for folder in folders}
    newest = sorted((f for f in folders if steps_of[f].isdecimal()), key=lambda f: int(steps_of[f]))[
        -NEWEST_EVALUATIONS:
    ]
    metrics = {folder: read_status(folder / "metrics.json") or {} for folder in newest}
    suites = {name: suite for doc in metrics.values() for name, suite in doc.get("suites", {}).items()}
    losses = frozenset(name for name, suite in suites.items() if suite.get("metric") in _LOSS_METRICS)
    return [
        Judgement(f.name, int(steps_of[f]), metrics[f], _items(f / "samples.jsonl", suites.keys(), losses), losses)
        for f in newest
    ]


def _items(path: Path, suites: Collection[str], losses: Collection[str]) -> dict[tuple[str, str], tuple[float, float]]:
    items: dict[tuple[str, str], tuple[float, float]] = {}
    for doc in lines(path):
        suite, item = str(doc.get("suite")), str(doc.get("id"))
        if suite in losses:
            if doc.get("tokens") and doc.get("nll") is not None:
                items[suite, item] = (float(doc["nll"]), float(doc["tokens"]))
        elif suite in suites and doc.get("score") is not None:
            items[suite, item] = (float(doc["score"]), 1.0)
    return items


def held_out_curve(judged: Sequence[Judgement]) -> list[tuple[int, float]]:
    """(step, mean loss) of the judged commits on the held-out rows that all of them have in common.

    Commits are left out from the oldest on until at least 30 rows are shared, because `incoming` grows with every file.
    """
    rest = [one for one in judged if any(suite == _INCOMING for suite, _item in one.items)]
    while rest:
        shared = set.intersection(*({key for key in one.items if key[0] == _INCOMING} for one in rest))
        if len(shared) >= 30 or len(rest) == 1:
            return [(one.step, mean(one, shared)) for one in rest] if shared else []
        rest = rest[1:]
    return []


def mean(judged: Judgement, keys: set[tuple[str, str]]) -> float:
    """The mean over these items: nats per token for losses, the mean score otherwise."""
    pairs = [judged.items[key] for key in sorted(keys)]
    return sum(total for total, _weight in pairs) / sum(weight for _total, weight in pairs)


def events(workspace: Workspace) -> list[dict[str, Any]]:
    """What the daemon noted, oldest first."""
    return list(lines(workspace.status_file("events.jsonl")))
