"""What is asked of a model for a shard, and what its answers come to. No torch."""

import math

import pytest

from judge_farm import FakeScorer
from trainer.evaluate.scorer import PROBED, score_shard
from trainer.evaluate.suites import MULTIPLE_CHOICE, PERPLEXITY, Item, Shard

TURN = ({"role": "user", "content": "which?"},)


def question(number, expected="right"):
    row = {"messages": [*TURN, {"role": "assistant", "content": expected}]}
    return Item(f"q{number}", row, TURN, expected, "exact_match")


def choice(expected, *choices):
    row = {"messages": [*TURN, {"role": "assistant", "content": expected}]}
    return Item("c", row, TURN, expected, MULTIPLE_CHOICE, choices)


def score(items, *, by_loss=False, scorer=None):
    return score_shard(
        scorer or FakeScorer(lambda text: 1.5, lambda prompt: "right"), Shard("", tuple(items)), 4, by_loss=by_loss
    )


def test_a_graded_shard_takes_the_loss_of_a_few_items_only_and_grades_all():
    results = score([question(n) for n in range(PROBED + 5)])
    assert [one.tokens > 0 for one in results] == [True] * PROBED + [False] * 5
    assert {one.score for one in results} == {1.0}
    assert all(one.finite for one in results)


def test_a_shard_measured_by_loss_takes_every_loss():
    results = score([question(n) for n in range(PROBED + 5)], by_loss=True)
    assert {(one.nll, one.tokens) for one in results} == {(3.0, 2)}


def test_a_text_among_graded_items_has_its_loss_taken_wherever_it_stands():
    text = Item("t", {"text": "prose"}, None, None, PERPLEXITY)
    (last,) = score([*(question(n) for n in range(PROBED)), text])[-1:]
    assert (last.nll, last.tokens, last.score) == (3.0, 2, None)


def test_a_broken_model_shows_in_the_few_losses_of_a_graded_shard():
    broken = FakeScorer(lambda text: math.nan, lambda prompt: "right")
    assert not all(one.finite for one in score([question(n) for n in range(20)], scorer=broken))


class Chooser(FakeScorer):
    def __init__(self, losses):
        super().__init__(lambda text: 1.0, lambda prompt: "")
        self.found = losses

    def choice_losses(self, prompts, choices):
        return [self.found for _prompt in prompts]


@pytest.mark.parametrize(
    ("losses", "answer", "right"),
    [
        ([(3.0, 2), (1.0, 2), (2.0, 2)], "b", 1.0),
        ([(1.0, 2), (3.0, 2), (2.0, 2)], "a", 0.0),
        ([(1.0, 9), (1.5, 1), (2.0, 1)], "a", 0.0),  # summed, not by token
        ([(math.nan, 2), (1.0, 2), (2.0, 2)], "b", 1.0),
        ([(1.0, 2), (math.nan, 2), (2.0, 2)], "a", 0.0),
        ([(0.0, 0), (0.0, 0), (0.0, 0)], "", 0.0),  # longer than the context: nothing was read
        ([(5.0, 2), (0.0, 0), (2.0, 2)], "", 0.0),
    ],
)
def test_the_likeliest_choice_is_the_answer_and_the_loss_is_that_of_the_right_one(losses, answer, right):
    (result,) = score([choice("b", "a", "b", "c")], scorer=Chooser(losses))
    assert (result.answer, result.score) == (answer, right)
    nll, tokens = losses[1]
    assert result.tokens == tokens
    assert result.nll == (nll if tokens and math.isfinite(nll) else None)
