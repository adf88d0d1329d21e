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
# Items of a graded shard whose loss is taken all the same: enough to see that a model is broken (a loss that is not a
# number), and for the server's gate to compare itself with. On all of them it took 30 % of a judgement and decided
# nothing.
PROBED = 8

Row = dict[str, Any]
Turn = dict[str, str]
Loss = tuple[float, int]  # summed in nats, over so many trained tokens


class Scorer(Protocol):
    """What the judge asks of a model."""

    def losses(self, rows: Sequence[Row]) -> list[Loss]:
        """The loss of each row."""

    def choice_losses(self, prompts: Sequence[Sequence[Turn]], choices: Sequence[Sequence[str]]) -> list[list[Loss]]:
        """The losses of each prompt's choices as the answer to it; no tokens where they do not fit the context."""

    def answers(self, prompts: Sequence[Sequence[Turn]], max_new_tokens: int) -> list[str]:
        """The greedy answer to each prompt."""

    def count_tokens(self, text: str) -> int:
        """How many tokens an answer of this text takes."""


def score_shard(scorer: Scorer, shard: Shard, max_new_tokens: int | None, *, by_loss: bool) -> ShardResults:
    """Score every item: its answer and grade, its loss where that is what the suite measures.

    Raises:
        ConfigError: an item that its grader cannot read.
    """
    items = shard.items
    chosen = _chosen(scorer, items)
    graded = _answered(scorer, items, max_new_tokens) | {
        name: (text, score) for name, (text, score, _l) in chosen.items()
    }
    wanted = [item for item in items if item.row is not None and item.id not in chosen]
    wanted = [item for n, item in enumerate(wanted) if by_loss or item.prompt is None or n < PROBED]
    losses = dict(zip((i.id for i in wanted), scorer.losses([i.row for i in wanted if i.row]), strict=True))
    losses |= {name: loss for name, (_text, _score, loss) in chosen.items()}
    return tuple(_result(item, losses.get(item.id), graded.get(item.id)) for item in items)


def _result(item: Item, loss: Loss | None, graded: tuple[str, float] | None) -> ItemResult:
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


def _chosen(scorer: Scorer, items: Sequence[Item]) -> dict[str, tuple[str, float, Loss]]:
    """Multiple choice: the choice of the highest summed log-likelihood, whether it is right, the right one's loss."""
    asked = [item for item in items if item.prompt is not None and item.grader == MULTIPLE_CHOICE]
    losses = scorer.choice_losses([item.prompt or () for item in asked], [item.choices for item in asked])
    return {item.id: _choice(item, found) for item, found in zip(asked, losses, strict=True)}


def _choice(item: Item, losses: Sequence[Loss]) -> tuple[str, float, Loss]:
    right = item.choices.index(str(item.expected))
    nlls = [nll if nll == nll else float("inf") for nll, _tokens in losses]  # not a number: never the best
    if any(tokens == 0 for _nll, tokens in losses):
        return "", 0.0, losses[right]
    best = item.choices[min(range(len(nlls)), key=nlls.__getitem__)]
    return best, float(best == item.expected), losses[right]
