"""Sampling draws what its parameters allow, in the right proportions, and repeatably."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.sampling import Sampler, Sampling, score_row

LOGITS = np.array([2.0, 1.0, 0.0, -1.0, -30.0], dtype=np.float32)


def draws(how: Sampling, count: int = 2000, logits: np.ndarray = LOGITS) -> np.ndarray:
    sampler = Sampler(how)
    return np.bincount([sampler.draw(logits) for _ in range(count)], minlength=len(logits)) / count


def test_temperature_zero_is_arg_max_and_ties_go_to_the_smallest_id() -> None:
    assert draws(Sampling(temperature=0), 5)[0] == 1
    assert Sampler(Sampling(temperature=0)).draw(np.array([1.0, 3.0, 3.0], dtype=np.float32)) == 1


def test_frequencies_are_those_of_the_softmax() -> None:
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert np.abs(draws(Sampling(seed=1), 20_000) - expected).max() < 0.015


def test_temperature_divides_the_logits() -> None:
    expected = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum()
    assert np.abs(draws(Sampling(temperature=2.0, seed=1), 20_000) - expected).max() < 0.015


def test_top_k_and_top_p_leave_only_the_likeliest() -> None:
    assert (draws(Sampling(top_k=2, seed=1))[2:] == 0).all()
    kept = draws(Sampling(top_p=0.7, seed=1))  # 0.64 alone is below 0.7, so the second stays too
    assert (kept[:2] > 0).all()
    assert (kept[2:] == 0).all()
    assert draws(Sampling(top_p=1e-9, seed=1), 20)[0] == 1


def test_the_same_seed_gives_the_same_tokens_and_each_choice_its_own() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def tokens(seed: int | None, choice: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), choice)
        return [sampler.draw(logits) for _ in range(8)]

    assert tokens(7, 0) == tokens(7, 0)
    assert len({tuple(tokens(7, c)) for c in range(3)} | {tuple(tokens(-7, 0)), tuple(tokens(None, 0))}) == 5


def test_bias_and_penalties_change_the_choice() -> None:
    assert Sampler(Sampling(temperature=0, logit_bias={3: 100.0})).draw(LOGITS) == 3
    sampler = Sampler(Sampling(temperature=0, presence_penalty=1.5))
    assert [sampler.draw(LOGITS) for _ in range(3)] == [0, 1, 0]
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=0.6))
    assert [sampler.draw(LOGITS) for _ in range(4)] == [0, 0, 1, 0]


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.integers(0, 39), st.integers(0, 20))
def test_scores_are_log_softmax_and_the_top_is_sorted(values: list[float], token: int, top: int) -> None:
    row = np.array(values, dtype=np.float32)
    token %= len(row)
    wide = row.astype(np.float64)
    expected = wide - (wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    score = score_row(row, token, top)
    assert score.logprob == pytest.approx(expected[token], abs=1e-9)
    assert [i for i, _ in score.top] == np.argsort(-wide, kind="stable")[:top].tolist()
