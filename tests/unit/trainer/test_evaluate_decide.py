"""The rules of the decision, one by one."""

from dataclasses import replace

import pytest

from trainer.evaluate.decide import Comparison, decide, regressed

BETTER = Comparison("incoming", "primary", "loss", 200, 2.0, 1.8, 0.2, (0.1, 0.3), 0.001, 1.0, 0.0)
GUARD = Comparison("easy", "guard", "accuracy", 100, 0.5, 0.5, 0.0, (-0.1, 0.1), 1.0, 1.0, 0.02)
KNOWN = {"finite": True, "serving": "0-aaaaaaaaaaaa", "items": 200, "look": 1, "alpha": 0.025}


def test_a_significant_gain_is_promoted_and_the_reason_holds_the_numbers():
    verdict = decide(**KNOWN, comparisons=[BETTER, GUARD])
    assert (verdict.decision, verdict.p_value, verdict.alpha, verdict.look) == ("promote", 0.001, 0.025, 1)
    assert "incoming" in verdict.reason
    assert "2 -> 1.8 over 200 items" in verdict.reason
    assert verdict.promotes


def test_a_gain_that_this_look_cannot_afford_is_kept():
    assert decide(**{**KNOWN, "alpha": 0.0005}, comparisons=[BETTER]).decision == "keep"
    assert decide(**{**KNOWN, "alpha": 0.001}, comparisons=[BETTER]).decision == "keep"


def test_a_loss_that_is_not_finite_is_kept_before_anything_else():
    for serving in ("0-aaaaaaaaaaaa", None):
        verdict = decide(**{**KNOWN, "finite": False, "serving": serving, "items": 3}, comparisons=[])
        assert verdict.decision == "keep"
        assert not verdict.promotes


def test_nothing_serves_means_no_baseline_and_promotion():
    verdict = decide(**{**KNOWN, "serving": None, "items": 0}, comparisons=[])
    assert (verdict.decision, verdict.p_value, verdict.promotes) == ("no_baseline", None, True)


@pytest.mark.parametrize(("items", "decision"), [(29, "no_baseline"), (30, "promote")])
def test_fewer_than_thirty_items_are_no_comparison(items, decision):
    verdict = decide(**{**KNOWN, "items": items}, comparisons=[BETTER])
    assert verdict.decision == decision
    assert items == 30 or "29 held-out items" in verdict.reason


@pytest.mark.parametrize(("gain", "decision"), [(-0.02, "promote"), (-0.03, "keep")])
def test_a_guard_may_fall_as_far_as_its_tolerance(gain, decision):
    verdict = decide(**KNOWN, comparisons=[BETTER, replace(GUARD, after=0.5 + gain, gain=gain, p_worse=0.01)])
    assert verdict.decision == decision
    assert decision == "promote" or "easy" in verdict.reason


def test_a_guard_that_wavers_by_chance_stops_nobody():
    wavering = replace(GUARD, gain=-0.07, after=0.43, p_worse=0.1)
    assert decide(**KNOWN, comparisons=[BETTER, wavering]).decision == "promote"
    clear = replace(wavering, p_worse=0.02)
    assert decide(**KNOWN, comparisons=[BETTER, clear]).decision == "keep"
    assert decide(**KNOWN, comparisons=[BETTER, clear, GUARD, GUARD]).decision == "promote"


def test_a_guard_that_falls_also_stops_a_candidate_with_few_items():
    fallen = replace(GUARD, gain=-0.5, after=0.0, p_worse=1e-9)
    assert decide(**{**KNOWN, "items": 5}, comparisons=[BETTER, fallen]).decision == "keep"


def test_a_reported_suite_decides_nothing():
    shown = replace(GUARD, role="report", gain=-0.5, p_worse=1e-9)
    assert decide(**KNOWN, comparisons=[BETTER, shown]).decision == "promote"


def test_two_primary_suites_share_the_level():
    weak = replace(BETTER, name="second", p_value=0.4, gain=0.0)
    assert decide(**KNOWN, comparisons=[replace(BETTER, p_value=0.012), weak]).decision == "promote"
    assert decide(**KNOWN, comparisons=[replace(BETTER, p_value=0.013), weak]).decision == "keep"


def test_a_gain_on_one_primary_suite_does_not_buy_a_loss_on_another():
    worse = replace(BETTER, name="second", p_value=1.0, gain=-0.2, p_worse=1e-4)
    verdict = decide(**KNOWN, comparisons=[BETTER, worse])
    assert verdict.decision == "keep"
    assert "second" in verdict.reason


def test_a_second_primary_suite_that_only_wavers_does_not_block():
    wavering = replace(BETTER, name="second", p_value=0.6, gain=-0.01, p_worse=0.4)
    assert decide(**KNOWN, comparisons=[BETTER, wavering]).decision == "promote"


def test_a_gain_within_the_noise_floor_is_none():
    assert decide(**KNOWN, comparisons=[replace(BETTER, gain=1e-7, noise=1e-6)]).decision == "keep"
    assert decide(**KNOWN, comparisons=[replace(BETTER, gain=1e-5, noise=1e-6)]).decision == "promote"


@pytest.mark.parametrize(("gain", "decision"), [(-0.04, "promote"), (-0.06, "keep")])
def test_a_drop_of_a_guard_within_tolerance_and_noise_is_none(gain, decision):
    noisy = replace(GUARD, gain=gain, noise=0.03, p_worse=1e-6)
    assert decide(**KNOWN, comparisons=[BETTER, noisy]).decision == decision


def test_a_loss_on_a_primary_suite_is_a_regression_only_beyond_the_noise_floor():
    worse = replace(BETTER, gain=-1e-5, ci95=(-2e-5, -1e-6), noise=1e-6)
    assert regressed([worse])
    assert not regressed([replace(worse, noise=1e-4)])
    assert not regressed([replace(worse, ci95=(-2e-5, 1e-6))])
