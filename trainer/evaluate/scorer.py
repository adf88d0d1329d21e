"""What the judge asks of a model, and how the answers to a shard become results (arrow: judge); torch-free.

Units    losses in nats summed over an item's trained tokens
Errors   ConfigError for an item that its grader cannot read
"""

from collections.abc import Sequence
from typing import Any, Protocol  # rows are JSON documents

from trainer.evaluate.graders import grade
from trainer.evaluate.results import ItemResult, ShardResults
from trainer.evaluate.suites import LONGEST_ANSWER_TOKENS, MULTIPLE_CHOICE, Item, Shard

# An answer may be a little longer than the expected one before it is cut.
_SPARE_TOKENS = 8

Row = dict[str, Any]
Turn = dict[str, str]


class Scorer(Protocol):
    """What the judge asks of a model."""

    def losses(self, rows: Sequence[Row]) -> list[tuple[float, int]]:
        """(summed loss in nats, trained tokens) of each row."""

    def answers(self, prompts: Sequence[Sequence[Turn]], max_new_tokens: int) -> list[str]:
        """The greedy answer to each prompt."""

    def count_tokens(self, text: str) -> int:
        """How many tokens an answer of this text takes."""


def score_shard(scorer: Scorer, shard: Shard, max_new_tokens: int | None) -> ShardResults:
    """Score every item: its loss, its answer, its grade. Raises ConfigError for an item no grader can read."""
    items = shard.items
    rows = [item.row for item in items if item.row is not None]
    losses = iter(scorer.losses(rows))
    loss_of = {item.id: next(losses) for item in items if item.row is not None}
    graded = _answered(scorer, items, max_new_tokens) | _chosen(scorer, items)
    return tuple(_result(item, loss_of.get(item.id), graded.get(item.id)) for item in items)


def _result(item: Item, loss: tuple[float, int] | None, graded: tuple[str, float] | None) -> ItemResult:
    nll, tokens = loss or (0.0, 0)
    finite = tokens > 0 and abs(nll) < float("inf")
    answer, score = graded or (None, None)
    return ItemResult(item.id, nll if finite else None, tokens, answer, score)


def _answered(scorer: Scorer, items: Sequence[Item], max_new_tokens: int | None) -> dict[str, tuple[str, float]]:
    asked = [item for item in items if item.prompt is not None and item.grader != MULTIPLE_CHOICE]
    if not asked:
        return {}
    longest = max_new_tokens or min(
        LONGEST_ANSWER_TOKENS, _SPARE_TOKENS + max(scorer.count_tokens(str(item.expected)) for item in asked)
    )
    answers = scorer.answers([item.prompt or () for item in asked], longest)
    return {
        item.id: (answer, grade(item.grader, answer, item.expected))
        for item, answer in zip(asked, answers, strict=True)
    }


def _chosen(scorer: Scorer, items: Sequence[Item]) -> dict[str, tuple[str, float]]:
    """Multiple choice: the choice of the highest summed log-likelihood after the prompt."""
    asked = [item for item in items if item.prompt is not None and item.grader == MULTIPLE_CHOICE]
    rows = [
        {"messages": [*(item.prompt or ()), {"role": "assistant", "content": choice}]}
        for item in asked
        for choice in item.choices
    ]
    losses = iter(scorer.losses(rows))
    chosen = {}
    for item in asked:
        nlls = [next(losses)[0] for _choice in item.choices]
        best = item.choices[min(range(len(nlls)), key=nlls.__getitem__)]
        chosen[item.id] = (best, float(best == item.expected))
    return chosen
