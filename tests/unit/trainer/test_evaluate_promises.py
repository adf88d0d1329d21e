"""How often the judge is wrong, by simulation: false promotions and missed improvements."""

import numpy as np
import pytest

from trainer.evaluate.compare import paired
from trainer.evaluate.decide import decide
from trainer.evaluate.results import ItemResult, SuiteResult
from trainer.evaluate.significance import mcnemar_p, paired_gain
from trainer.evaluate.spending import alpha_at, resamples_for
from trainer.evaluate.suites import Item, Shard, Suite


def suite(items, metric):
    made = tuple(Item(str(n), None, None, None, "exact_match") for n in range(items))
    return Suite("exam", "1", metric, "primary", 0.0, None, (Shard("", made),))


def by_loss(nll, tokens):
    items = tuple(
        ItemResult(str(n), float(x), int(t), None, None) for n, (x, t) in enumerate(zip(nll, tokens, strict=True))
    )
    return SuiteResult(suite(len(items), "loss"), items)


def by_answer(right):
    items = tuple(ItemResult(str(n), None, 0, "", float(r)) for n, r in enumerate(right))
    return SuiteResult(suite(len(items), "accuracy"), items)


def decision(before, after, look=1):
    alpha = alpha_at(look)
    comparison = paired(before, after, role="primary", resamples=resamples_for(alpha))
    return decide(
        finite=True, serving="0-aaaaaaaaaaaa", items=len(after.items), look=look, alpha=alpha, comparisons=[comparison]
    ).decision


def loss_p(before, after, tokens):
    return paired_gain(-before, -after, tokens.astype(float)).p_value


def answers_p(before, after):
    return mcnemar_p(int((after & ~before).sum()), int((before & ~after).sum()))


def losses(random, items):
    """Losses as they are seen: heavy-tailed over items, few tokens each."""
    tokens = random.integers(3, 60, items)
    return tokens * random.lognormal(0.5, 0.6, items), tokens


def retrained(random, nll, tokens, gain=0.0):
    """A checkpoint trained on: every item moves at random by about a tenth, all of them by `gain` a token."""
    return nll * random.lognormal(-0.005, 0.1, len(nll)) - gain * tokens


def test_the_judge_decides_by_exactly_these_p_values():
    """The simulations below take the p-values alone, which is what the decision rests on."""
    random = np.random.default_rng(10)
    seen = set()
    for n in range(12):
        nll, tokens = losses(random, 60)
        better = retrained(random, nll, tokens, gain=0.03 * n)
        verdict = decision(by_loss(nll, tokens), by_loss(better, tokens), look=1 + n % 3)
        assert (verdict == "promote") == (loss_p(nll, better, tokens) < alpha_at(1 + n % 3))
        before, after = random.random(60) < 0.4, random.random(60) < 0.4 + 0.03 * n
        answered = decision(by_answer(before), by_answer(after), look=1 + n % 3)
        assert (answered == "promote") == (answers_p(before, after) < alpha_at(1 + n % 3))
        seen |= {verdict, answered}
    assert seen == {"promote", "keep"}


def test_of_200_pairs_of_equal_checkpoints_at_most_five_percent_promote_by_loss():
    random = np.random.default_rng(11)
    promoted = 0
    for _ in range(200):
        nll, tokens = losses(random, 120)
        promoted += loss_p(nll, retrained(random, nll, tokens), tokens) < alpha_at(1)
    assert promoted <= 10


def test_of_200_pairs_of_equal_checkpoints_at_most_five_percent_promote_by_answers():
    random = np.random.default_rng(12)
    promoted = 0
    for _ in range(200):
        before = random.random(100) < 0.6
        flipped = random.random(100) < 0.15
        after = np.where(flipped, random.random(100) < 0.6, before)
        promoted += answers_p(before, after) < alpha_at(1)
    assert promoted <= 10


def test_ten_points_more_at_three_hundred_items_promote_in_nine_of_ten():
    """15 % of the items gained, 5 % lost, at the first look."""
    random = np.random.default_rng(13)
    promoted = 0
    for _ in range(200):
        fate = random.random(300)
        before = np.where(fate < 0.15, False, np.where(fate < 0.20, True, random.random(300) < 0.5))
        after = np.where(fate < 0.15, True, np.where(fate < 0.20, False, before))
        promoted += answers_p(before, after) < alpha_at(1)
    assert promoted >= 180


def test_a_loss_lower_by_six_hundredths_a_token_promotes_in_nine_of_ten():
    random = np.random.default_rng(14)
    promoted = 0
    for _ in range(100):
        nll, tokens = losses(random, 300)
        promoted += loss_p(nll, retrained(random, nll, tokens, gain=0.06), tokens) < alpha_at(1)
    assert promoted >= 90


@pytest.mark.slow
def test_fifty_looks_at_equal_checkpoints_promote_in_at_most_five_percent_of_runs():
    """200 runs of 50 commits, none of them better, judged on the same 300 items; a promotion anywhere is an error."""
    random = np.random.default_rng(15)
    wrong = 0
    for _ in range(200):
        before = random.random(300) < 0.5
        after = before
        for look in range(1, 51):
            moved = random.random(300) < 0.1  # each commit differs from the one before it on a tenth of the items
            after = np.where(moved, random.random(300) < 0.5, after)
            gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
            if gained > lost and mcnemar_p(gained, lost) < alpha_at(look):
                wrong += 1
                break
    assert wrong <= 10


def test_without_spending_fifty_looks_would_promote_far_too_often():
    """The same runs at a constant 0.05: the reason for the rule."""
    random = np.random.default_rng(15)
    wrong = 0
    for _ in range(60):
        before = random.random(300) < 0.5
        after = before
        for _look in range(50):
            moved = random.random(300) < 0.1
            after = np.where(moved, random.random(300) < 0.5, after)
            gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
            if gained - lost > 1.645 * (gained + lost) ** 0.5:
                wrong += 1
                break
    assert wrong > 12
