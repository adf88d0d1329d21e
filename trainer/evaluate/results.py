"""What a checkpoint scored, item by item (arrow: judge).

Reads    checkpoints/<run>/evaluations/<id>/samples.jsonl     Writes  the same, by rename
Format   a head line {"schema", "checkpoint", "environment"}, then one JSON object an item
Units    `nll` in nats summed over the item's `tokens` trained tokens; `score` in 0..1
Errors   StorageError when the disk refuses; a file that cannot be read, or that another environment wrote, counts as
         absent, because it can be computed again
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any  # a sample is a JSON document

import numpy as np

from core.atomic import parse_json, write_bytes
from core.errors import JsonError
from trainer.evaluate.significance import Floats
from trainer.evaluate.suites import Item, Shard, Suite

SAMPLES_FILE = "samples.jsonl"
SCHEMA = "samples.v1"


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One item scored. `nll` is None when no loss was taken (`tokens` 0) or when it is not finite (`tokens` > 0)."""

    id: str
    nll: float | None
    tokens: int
    answer: str | None
    score: float | None

    @property
    def finite(self) -> bool:
        return self.tokens == 0 or self.nll is not None


ShardResults = tuple[ItemResult, ...]


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """A suite scored: the items' results in the order of `suite.items`."""

    suite: Suite
    items: ShardResults

    @property
    def finite(self) -> bool:
        return all(item.finite for item in self.items)

    def losses(self) -> tuple[Floats, Floats]:
        """Summed losses in nats and trained tokens of the items that have a loss, two arrays [items]."""
        scored = [item for item in self.items if item.tokens > 0]
        nll = np.array([math.inf if item.nll is None else item.nll for item in scored], dtype=np.float64)
        return nll, np.array([item.tokens for item in scored], dtype=np.float64)

    def scores(self) -> Floats:
        """Scores of the items that were asked, [items] in 0..1."""
        return np.array([item.score for item in self.items if item.score is not None], dtype=np.float64)


class ResultStore:
    """The results of one checkpoint, kept by shard."""

    def __init__(self, folder: Path, checkpoint_id: str, environment: Mapping[str, object]) -> None:
        self._path = folder / SAMPLES_FILE
        self._head = {"schema": SCHEMA, "checkpoint": checkpoint_id, "environment": dict(environment)}
        self.noise: dict[str, float] = {}  # by suite.sha256: how far a second scoring of the same weights was off
        self._lines: list[dict[str, Any]] = []
        self._known: dict[str, ShardResults] = self._load()

    def get(self, shard: Shard) -> ShardResults | None:
        """What was scored before for exactly these items, or None."""
        found = self._known.get(shard.sha256)
        return found if found is not None and [r.id for r in found] == [i.id for i in shard.items] else None

    def put(self, shard: Shard, results: ShardResults) -> None:
        self._known[shard.sha256] = results

    def save(self, suites: Iterable[Suite]) -> None:
        """Replace the results of these suites; those of others stay in the file. Raises StorageError."""
        named = list(suites)
        lines = [{**self._head, "noise": self.noise}]
        lines += [doc for doc in self._lines if doc["suite"] not in {suite.name for suite in named}]
        for suite in named:
            for shard in suite.shards:
                results = self._known.get(shard.sha256, ())
                lines += [
                    _line(suite.name, shard.sha256, item, result)
                    for item, result in zip(shard.items, results, strict=False)
                ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        write_bytes(self._path, text.encode(errors="replace"))

    def _load(self) -> dict[str, ShardResults]:
        docs = read_samples(self._path)
        if not docs or not isinstance(docs[0], dict):
            return {}
        self.noise = docs[0].pop("noise", {})
        if docs[0] != json.loads(json.dumps(self._head)):
            self.noise = {}
            return {}
        self._lines = docs[1:]
        shards: dict[str, list[ItemResult]] = {}
        for doc in self._lines:
            result = ItemResult(doc["id"], doc["nll"], doc["tokens"], doc["answer"], doc["score"])
            shards.setdefault(doc["shard"], []).append(result)
        return {sha256: tuple(results) for sha256, results in shards.items()}


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of a samples.jsonl, its head first; empty when there is none or it is damaged."""
    try:
        raw = path.read_bytes()
    except OSError:
        return []
    try:
        return [parse_json(line, str(path)) for line in raw.split(b"\n") if line]
    except JsonError:
        return []


def _line(suite: str, shard: str, item: Item, result: ItemResult) -> dict[str, Any]:
    return {
        "suite": suite,
        "shard": shard,
        **asdict(result),
        "expected": item.expected,
        "grader": item.grader,
        "tags": list(item.tags),
        "row": item.row,
    }
