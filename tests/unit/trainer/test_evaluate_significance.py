"""Statistics of the judge against values computed another way."""

import math

import numpy as np
import pytest
from scipy import stats

from trainer.evaluate.significance import mcnemar_p, paired_gain, ratio_interval, student_p, wilson_interval
from trainer.evaluate.spending import ALPHA, alpha_at, resamples_for


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 1), (5, 3), (45, 15), (30, 30), (700, 650)])
def test_mcnemar_equals_the_binomial_tail(gained, lost):
    pairs = gained + lost
    expected = stats.binomtest(gained, pairs, 0.5, alternative="greater").pvalue if pairs else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_very_many_pairs_is_still_a_number():
    assert 0 < mcnemar_p(2600, 2400) < 0.005


@pytest.mark.parametrize(("right", "items"), [(0, 10), (10, 10), (47, 100)])
def test_wilson_equals_scipys(right, items):
    known = stats.binomtest(right, items).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, items) == pytest.approx((known.low, known.high))


def test_none_right_and_all_right_reach_the_ends_exactly():
    assert wilson_interval(0, 200)[0] == 0
    assert wilson_interval(200, 200)[1] == 1


def test_no_items_tell_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_gain_is_weighted_by_trained_tokens():
    baseline, candidate = np.array([-10.0, -2.0]), np.array([-7.0, -2.5])
    assert paired_gain(baseline, candidate, np.array([9.0, 1.0])).delta == pytest.approx((3.0 - 0.5) / 10)


def test_a_checkpoint_compared_with_itself_is_never_better():
    losses = -np.random.default_rng(1).exponential(2.0, 200)
    result = paired_gain(losses, losses, np.ones(200))
    assert (result.delta, result.ci95, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    random = np.random.default_rng(2)
    baseline = random.normal(size=80)
    candidate = baseline + random.normal(0.1, 1, 80)
    first, again = (paired_gain(baseline, candidate, np.ones(80), seed=7) for _ in range(2))
    assert first == again
    assert first != paired_gain(baseline, candidate, np.ones(80), seed=8)


@pytest.mark.parametrize(("items", "shift"), [(2, 0.1), (5, -1.0), (30, 0.0), (30, 0.7), (300, 0.3), (1000, -0.2)])
def test_the_t_test_equals_scipys(items, shift):
    gains = np.random.default_rng(items).normal(shift, 1, items)
    assert student_p(gains) == pytest.approx(stats.ttest_1samp(gains, 0, alternative="greater").pvalue, rel=1e-9)


def test_a_far_tail_keeps_its_precision():
    gains = np.random.default_rng(6).normal(1.0, 1, 400)
    expected = stats.ttest_1samp(gains, 0, alternative="greater").pvalue
    assert 0 < expected < 1e-40
    assert student_p(gains) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("gains", "p"), [([1.0] * 40, 0), ([0.0] * 40, 0.5), ([-0.1] * 40, 1), ([2.0], 0)])
def test_gains_without_spread_are_decided_by_their_sign(gains, p):
    assert student_p(np.array(gains)) == p


def test_students_p_is_taken_where_the_bootstrap_is_too_sure():
    gains = np.array([1.0, 1.0, 1.0, 1.0, 3.0])  # no resample of five gains is a loss
    assert paired_gain(np.zeros(5), gains, np.ones(5)).p_value == student_p(gains) > 0.01
    assert paired_gain(gains, np.zeros(5), np.ones(5)).p_worse == pytest.approx(student_p(gains))


def test_intervals_of_few_items_are_as_wide_as_their_variance_says():
    gains = np.random.default_rng(9).normal(0, 1, 8)
    low, high = paired_gain(np.zeros(8), gains, np.ones(8)).ci95
    plain = gains[np.random.default_rng(1).integers(0, 8, (20_000, 8))].mean(axis=1)
    assert (high - low) / np.diff(np.quantile(plain, (0.025, 0.975)))[0] == pytest.approx((8 / 7) ** 0.5, rel=0.02)


def test_a_few_items_that_move_far_do_not_make_a_gain():
    gains = np.concatenate([np.full(2, 30.0), np.full(58, -0.02)])
    assert paired_gain(np.zeros(60), gains, np.ones(60)).p_value > 0.05


def test_p_agrees_with_the_t_test_on_well_behaved_numbers():
    random = np.random.default_rng(3)
    gains = random.normal(0.2, 1, 120)
    result = paired_gain(np.zeros(120), gains, np.ones(120))
    expected = stats.ttest_1samp(gains, 0, alternative="greater").pvalue
    assert result.p_value == pytest.approx(expected, abs=0.006)


def test_the_level_holds_when_nothing_changed():
    """One-sided false alarms at 0.05 on 40 items, 2,000 experiments: 0.05 +- 3 standard errors."""
    random = np.random.default_rng(4)
    alarms = 0
    for trial in range(2000):
        gains = random.normal(0, 1, 40)
        alarms += paired_gain(np.zeros(40), gains, np.ones(40), resamples=400, seed=trial).p_value < 0.05
    assert 0.035 < alarms / 2000 < 0.066


@pytest.mark.parametrize(
    ("baseline", "candidate", "weights"),
    [
        ([], [], []),
        ([1.0], [1.0, 2.0], [1.0]),
        ([1.0], [math.nan], [1.0]),
        ([1.0], [math.inf], [1.0]),
        ([1.0], [1.0], [0.0]),
    ],
)
def test_what_cannot_be_paired_is_refused(baseline, candidate, weights):
    with pytest.raises(ValueError, match=r"paired|operands|broadcast"):
        paired_gain(np.array(baseline), np.array(candidate), np.array(weights))


def test_the_mean_loss_lies_inside_its_interval():
    random = np.random.default_rng(5)
    tokens = random.integers(1, 50, 200).astype(float)
    value, (low, high) = ratio_interval(tokens * random.normal(2, 0.3, 200), tokens)
    assert low < value < high
    assert value == pytest.approx(2, abs=0.1)


def test_fifty_looks_together_spend_no_more_than_the_budget():
    assert sum(alpha_at(look) for look in range(1, 51)) < ALPHA
    assert sum(alpha_at(look) for look in range(1, 501)) < 1.1 * ALPHA


def test_the_first_look_gets_half_and_no_look_gets_nothing():
    assert alpha_at(1) == ALPHA / 2 >= 0.01
    assert all(alpha_at(look) >= 1e-5 for look in (100, 10_000))
    with pytest.raises(ValueError, match="count from 1"):
        alpha_at(0)


@pytest.mark.parametrize("look", [1, 10, 50, 1000])
def test_a_p_value_can_always_fall_below_what_a_look_may_spend(look):
    alpha = alpha_at(look)
    resamples = resamples_for(alpha)
    assert resamples >= 10_000
    assert 1 / (1 + resamples) < alpha


def test_a_draw_is_divided_by_the_tokens_of_the_items_drawn():
    tokens = np.array([1.0, 5.0, 40.0, 7.0])
    value, interval = ratio_interval(2 * tokens, tokens)  # the same loss per token everywhere: no draw can differ
    assert (value, *interval) == pytest.approx((2, 2, 2))
    assert paired_gain(np.zeros(4), 2 * tokens, tokens).ci95 == pytest.approx((2, 2))
