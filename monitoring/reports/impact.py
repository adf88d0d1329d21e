"""What each file did to the model: every judged commit against the one judged before it (beside the arrow judge); pure.

A file's effect is measured on the items that both commits were scored on, so a file that comes with its own held-out
rows is also measured on what was there before it: forgetting shows. When several files lie between two judged commits
they share the effect, and the report says so.

Units    gains are positive when the model got better: nats per token for losses, share or score otherwise
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any  # manifests are JSON documents

from monitoring.reports.records import Judgement, mean


@dataclass(frozen=True, slots=True)
class Impact:
    """The files trained between two judged commits and what they did to each suite."""

    checkpoint: str
    before: str
    files: tuple[tuple[str, str], ...]  # (file name, generator)
    gains: Mapping[str, float]  # by suite
    items: Mapping[str, int]

    @property
    def total(self) -> float:
        """The sum over suites, to rank by: a share of the items counts like a nat per token."""
        return sum(self.gains.values())


def impacts(judged: Sequence[Judgement], chain: Sequence[Mapping[str, Any]]) -> list[Impact]:
    """One entry for each judged commit of the chain that has a judged ancestor, oldest first.

    Args:
        judged: in the order of steps. chain: the run's manifests, base first.
    """
    place = {manifest["id"]: n for n, manifest in enumerate(chain)}
    line = sorted((one for one in judged if one.id in place), key=lambda one: place[one.id])
    found = []
    for before, after in pairwise(line):
        jobs = [job for manifest in chain[place[before.id] + 1 : place[after.id] + 1] for job in manifest["jobs"]]
        files = tuple(dict.fromkeys((str(job["file"]), str(job["generator"])) for job in jobs))
        gains, items = _gains(before, after)
        if files and gains:
            found.append(Impact(after.id, before.id, files, gains, items))
    return found


def _gains(before: Judgement, after: Judgement) -> tuple[dict[str, float], dict[str, int]]:
    shared: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for key in before.items.keys() & after.items.keys():
        shared[key[0]].add(key)
    gains = {}
    for suite, keys in sorted(shared.items()):
        change = mean(after, keys) - mean(before, keys)
        gains[suite] = -change if suite in after.by_loss else change
    return gains, {suite: len(keys) for suite, keys in shared.items()}


def by_generator(found: Sequence[Impact]) -> list[tuple[str, int, float]]:
    """(generator, files, mean total gain), best first; files that share a commit share its gain equally."""
    gains: dict[str, list[float]] = defaultdict(list)
    for one in found:
        for _file, generator in one.files:
            gains[generator].append(one.total / len(one.files))
    table = [(generator, len(values), sum(values) / len(values)) for generator, values in gains.items()]
    return sorted(table, key=lambda row: -row[2])
