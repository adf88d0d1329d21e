"""From a checkpoint and suites to per-item results, reusing what was scored before (arrow: judge).

Reads    checkpoints/<run>/checkpoint-<step>/, checkpoints/.undone/ (a serving checkpoint that training took back)
Writes   checkpoints/<run>/evaluations/<id>/samples.jsonl
Units    seconds
Effects  loads torch and the model only when something is not known yet
"""

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from core.atomic import read_json
from core.checkpoints import MANIFEST_FILE, Catalogue, Checkpoint
from core.errors import CheckpointError, JsonError, NotFoundError, StorageError
from core.paths import Workspace
from trainer.evaluate.results import ResultStore, ShardResults, SuiteResult
from trainer.evaluate.scorer import Scorer, score_shard
from trainer.evaluate.suites import Shard, Suite

# Raised when the same weights and items would be scored differently: older samples are then scored again.
FORMAT = 2
# Items scored twice to measure the noise floor.
NOISE_ITEMS = 32
LoadScorer = Callable[[Checkpoint], Scorer]


def environment(device: str) -> dict[str, object]:
    """What the last bits of a score depend on beside weights and items.

    The number of threads is left out: with one and two the bits were the same (docs/log.md, "Judge"), and a baseline
    scored by an idle machine must not be scored again by a busy one.
    """
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    return {"format": FORMAT, "device": device, "dtype": "float32", **versions}


def locate(workspace: Workspace, run: str, checkpoint_id: str) -> Checkpoint | None:
    """Find a checkpoint by id in this run, in another one, or among those taken back; None when it is gone."""
    for name in dict.fromkeys([run, *_runs(workspace)]):
        try:
            return Catalogue(workspace, name).get(checkpoint_id)
        except (NotFoundError, CheckpointError):
            continue
    for folder in sorted(workspace.undone_dir.glob(f"*-{checkpoint_id}-*")):
        try:
            return Checkpoint(folder, read_json(folder / MANIFEST_FILE))
        except (JsonError, StorageError):
            continue
    return None


def _runs(workspace: Workspace) -> list[str]:
    if not workspace.checkpoints_dir.is_dir():
        return []
    return sorted(e.name for e in workspace.checkpoints_dir.iterdir() if e.is_dir() and not e.name.startswith("."))


@dataclass
class Bench:
    """Scores checkpoints on suites. `seconds` counts the scoring of each checkpoint, model loading apart."""

    workspace: Workspace
    load: LoadScorer
    environment: dict[str, object]
    seconds: dict[str, float] = field(default_factory=dict)
    reused: dict[str, int] = field(default_factory=dict)
    noise: dict[str, dict[str, float]] = field(default_factory=dict)
    _loaded: tuple[str, Scorer] | None = None

    def score(self, checkpoint: Checkpoint, suites: Sequence[Suite], *, noise: bool = False) -> dict[str, SuiteResult]:
        """Per-item results of every suite, by name; with `noise` the floor of the primary suites is measured too.

        Side effects: samples.jsonl is replaced when anything was scored.

        Raises:
            ModelError: the checkpoint cannot be loaded. StorageError: the results cannot be written.
        """
        store = self._store(checkpoint)
        results: dict[str, SuiteResult] = {}
        fresh = False
        for suite in suites:
            parts: list[ShardResults] = []
            for shard in suite.asked_shards:
                known = store.get(shard)
                if known is None:
                    fresh = True
                    known = self._score(checkpoint, shard, suite)
                    store.put(shard, known)
                else:
                    self.reused[checkpoint.id] = self.reused.get(checkpoint.id, 0) + len(known)
                parts.append(known)
            results[suite.name] = SuiteResult(suite, tuple(item for part in parts for item in part))
            if noise and suite.role == "primary" and suite.shards and suite.sha256 not in store.noise:
                fresh = True
                store.noise[suite.sha256] = self._second_time(checkpoint, suite, parts[0])
        if fresh:
            store.save(suites)
        self.noise.setdefault(checkpoint.id, {}).update({s.name: store.noise.get(s.sha256, 0.0) for s in suites})
        return results

    def within(self, budget_s: float, checkpoints: Sequence[Checkpoint], guards: Sequence[Suite]) -> list[Suite]:
        """The guard suites, cut to the same share for all (1/4, 1/2 or everything) that can be asked in time.

        The first share is always asked. Answers that are known cost nothing. The speed is measured on the checkpoint
        that has the most to answer; the answers it gave meanwhile are kept.

        Raises:
            ModelError, StorageError: see `score`.
        """
        shares = [[replace(suite, asked=n) for suite in guards] for n in range(1, _most_shards(guards) + 1)]
        if not shares:
            return list(guards)
        first, *others = sorted(checkpoints, key=lambda one: -self._unknown(one, guards))
        chosen, asked, spent_s = shares[0], 0, 0.0
        for share in shares:
            left = self._unknown(first, share)
            needed_s = spent_s / max(1, asked) * (left + sum(self._unknown(other, share) for other in others))
            if spent_s + needed_s > budget_s:
                break
            before_s = self.seconds.get(first.id, 0.0)
            self.score(first, share)
            spent_s += self.seconds.get(first.id, 0.0) - before_s
            asked += left
            chosen = share
        return chosen

    def _store(self, checkpoint: Checkpoint) -> ResultStore:
        folder = self.workspace.evaluation_dir(str(checkpoint.manifest["run"]), checkpoint.id)
        return ResultStore(folder, checkpoint.id, self.environment)

    def _unknown(self, checkpoint: Checkpoint, suites: Sequence[Suite]) -> int:
        """How many items it has not answered yet."""
        store = self._store(checkpoint)
        shards = [shard for suite in suites for shard in suite.asked_shards]
        return sum(len(shard.items) for shard in shards if store.get(shard) is None)

    def _second_time(self, checkpoint: Checkpoint, suite: Suite, first: ShardResults) -> float:
        """How far the suite's mean moves when some items are scored again in other batches: the noise floor."""
        items = suite.shards[0].items[:NOISE_ITEMS]
        again = self._score(checkpoint, Shard("", items[::-1]), suite)[::-1]
        pairs = list(zip(first, again, strict=False))
        if suite.by_loss:
            tokens = sum(old.tokens for old, _new in pairs)
            return abs(sum((new.nll or 0.0) - (old.nll or 0.0) for old, new in pairs)) / max(1, tokens)
        return abs(sum((new.score or 0.0) - (old.score or 0.0) for old, new in pairs)) / len(pairs)

    def _score(self, checkpoint: Checkpoint, shard: Shard, suite: Suite) -> ShardResults:
        if self._loaded is None or self._loaded[0] != checkpoint.id:
            self._loaded = (checkpoint.id, self.load(checkpoint))
        started = time.perf_counter()
        scored = score_shard(self._loaded[1], shard, suite.max_new_tokens, by_loss=suite.by_loss)
        self.seconds[checkpoint.id] = self.seconds.get(checkpoint.id, 0.0) + time.perf_counter() - started
        return scored


def _most_shards(suites: Sequence[Suite]) -> int:
    return max((len(suite.shards) for suite in suites), default=0)
