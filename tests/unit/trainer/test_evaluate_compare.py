"""Two scored checkpoints in numbers: units, flips and the effect that a verdict shows."""

import math

import pytest

from trainer.evaluate.compare import effect, flips, paired
from trainer.evaluate.leaderboard import best_ever
from trainer.evaluate.results import ItemResult, SuiteResult
from trainer.evaluate.suites import Item, Shard, Suite


def scored(metric: str, results: list[ItemResult]) -> SuiteResult:
    items = tuple(Item(result.id, None, None, "x", "exact") for result in results)
    suite = Suite("s", "1", metric, "primary", 0.0, None, (Shard("sha", items),))
    return SuiteResult(suite, tuple(results))


def losses(metric: str, nats_per_token: float) -> SuiteResult:
    return scored(metric, [ItemResult(str(n), nats_per_token * 7, 7, None, None) for n in range(40)])


def answers(right: str) -> SuiteResult:
    return scored("accuracy", [ItemResult(str(n), None, 0, f"said {r}", float(r)) for n, r in enumerate(right)])


@pytest.mark.parametrize("metric", ["loss", "perplexity", "bits_per_token"])
def test_a_gain_is_the_difference_of_the_two_values_in_their_own_unit(metric):
    found = paired(losses(metric, 2.0), losses(metric, 1.5), role="primary")
    assert found is not None
    assert found.gain == pytest.approx(found.before - found.after)
    assert found.ci95 == pytest.approx((found.gain, found.gain))
    known = {"loss": 0.5, "perplexity": math.exp(2) - math.exp(1.5), "bits_per_token": 0.5 / math.log(2)}
    assert found.gain == pytest.approx(known[metric])


def test_answers_gained_are_a_gain_and_answers_lost_a_loss():
    better = paired(answers("0" * 20 + "1" * 20), answers("1" * 40), role="primary")
    worse = paired(answers("1" * 40), answers("0" * 20 + "1" * 20), role="primary")
    assert better is not None
    assert worse is not None
    assert better.p_value < 1e-5 < 0.5 < better.p_worse
    assert worse.p_worse < 1e-5 < 0.5 < worse.p_value


def test_flips_tell_the_gained_from_the_lost():
    found = flips(answers("0011"), answers("0110"))
    assert (found["gained"], found["lost"]) == (1, 1)
    assert [one["id"] for one in found["examples"]["gained"]] == ["1"]
    assert [(one["id"], one["before"], one["after"]) for one in found["examples"]["lost"]] == [
        ("3", "said 1", "said 0")
    ]


def test_an_effect_is_after_less_before_whichever_way_is_good():
    fallen = paired(losses("loss", 2.0), losses("loss", 1.5), role="primary")
    risen = paired(answers("0" * 20 + "1" * 20), answers("1" * 40), role="primary")
    assert fallen is not None
    assert risen is not None
    assert effect(fallen)["delta"] == pytest.approx(-0.5)
    assert effect(fallen)["ci95"] == pytest.approx([-0.5, -0.5])
    assert effect(fallen)["better"] == "lower"
    low, high = effect(risen)["ci95"]
    assert 0 < low <= effect(risen)["delta"] == 0.5 <= high
    assert effect(risen)["better"] == "higher"


def test_the_best_ever_is_found_among_all_candidates_not_the_newest():
    def entry(id, value):
        return {"id": id, "suites": {"easy": {"metric": "accuracy", "value": value, "n": 10, "sha256": "s"}}}

    best = best_ever([entry("1-a", 0.5), entry("2-b", 0.9), entry("3-c", 0.6)], "3-c")["easy"]
    assert (best["id"], best["value"]) == ("2-b", 0.9)
    assert best["drop_since"] == pytest.approx(0.3)
