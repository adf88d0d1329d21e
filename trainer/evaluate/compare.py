"""Two scored checkpoints side by side (arrow: judge); pure functions of their per-item results.

Units    a value in its metric's unit (share right, mean score, nats per token, perplexity, bits per token)
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any  # documents for metrics.json and `--json`

import numpy as np

from trainer.evaluate.decide import Comparison
from trainer.evaluate.results import SuiteResult
from trainer.evaluate.significance import (
    RESAMPLES,
    Floats,
    PairedResult,
    mcnemar_p,
    paired_gain,
    ratio_interval,
    wilson_interval,
)
from trainer.evaluate.suites import LOSS_METRICS

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class SuiteValue:
    """One suite summed up for one checkpoint."""

    metric: str
    n: int
    value: float | None
    ci95: tuple[float, float] | None
    exact_match: float | None  # share of the asked items answered right, whatever the metric
    exact_match_n: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(result: SuiteResult, *, seed: int = 0) -> SuiteValue:
    """The suite's metric with its 95 % interval; None when nothing of it is scored or a loss is not finite."""
    scores = result.scores()
    right, asked = int((scores >= 1).sum()), len(scores)
    share = right / asked if asked else None
    if result.suite.by_loss:
        nll, tokens = result.losses()
        value, ci95 = _loss_value(result.suite.metric, nll, tokens, seed)
        return SuiteValue(result.suite.metric, len(tokens), value, ci95, share, asked)
    if not asked:
        return SuiteValue(result.suite.metric, 0, None, None, None, 0)
    if result.suite.metric == "score":
        mean, around = ratio_interval(scores, np.ones_like(scores), seed=seed)
        return SuiteValue("score", asked, mean, around, share, asked)
    return SuiteValue(result.suite.metric, asked, share, wilson_interval(right, asked), share, asked)


def _loss_value(metric: str, nll: Floats, tokens: Floats, seed: int) -> tuple[float | None, tuple[float, float] | None]:
    if not len(tokens) or not np.isfinite(nll).all():
        return None, None
    value, (low, high) = ratio_interval(nll, tokens, seed=seed)
    return _in_metric(metric, value), (_in_metric(metric, low), _in_metric(metric, high))


def _in_metric(metric: str, nats: float) -> float:
    if metric == "perplexity":
        return math.exp(min(nats, 700.0))  # exp(710) overflows a double
    return nats / math.log(2) if metric == "bits_per_token" else nats


def _gain_in_metric(metric: str, before: float, nats: float) -> float:
    """A gain in nats per token, as a gain in the metric's own unit: perplexity falls from b to b exp(-gain)."""
    return before * -math.expm1(-nats) if metric == "perplexity" else _in_metric(metric, nats)


def paired(
    baseline: SuiteResult,
    candidate: SuiteResult,
    *,
    role: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    noise: float = 0.0,
) -> Comparison | None:
    """Compare a candidate with a baseline on the same items; None when nothing can be compared.

    Args:
        noise: measured difference of the candidate from itself, in nats per token or in score.

    Losses and scores are tested by the paired bootstrap, right and wrong answers by the exact McNemar test.
    """
    before, after = summarise(baseline, seed=seed), summarise(candidate, seed=seed)
    if before.value is None or after.value is None:
        return None
    suite = candidate.suite
    if suite.by_loss:
        nll_before, tokens = baseline.losses()
        nats = paired_gain(-nll_before, -candidate.losses()[0], tokens, resamples=resamples, seed=seed)
        in_metric = partial(_gain_in_metric, suite.metric, before.value)
        low, high = nats.ci95
        test, noise = (
            replace(nats, delta=in_metric(nats.delta), ci95=(in_metric(low), in_metric(high))),
            in_metric(noise),
        )
    else:
        test = _graded(baseline.scores(), candidate.scores(), suite.metric, resamples, seed)
    return Comparison(
        name=suite.name,
        role=role,
        metric=suite.metric,
        items=after.n,
        before=before.value,
        after=after.value,
        gain=test.delta,
        ci95=test.ci95,
        p_value=test.p_value,
        p_worse=test.p_worse,
        tolerance=suite.tolerance,
        noise=noise,
    )


def _graded(before: Floats, after: Floats, metric: str, resamples: int, seed: int) -> PairedResult:
    if metric != "score":
        before, after = (before >= 1).astype(np.float64), (after >= 1).astype(np.float64)
    test = paired_gain(before, after, np.ones_like(after), resamples=resamples, seed=seed)
    if metric == "score":
        return test
    gained, lost = int((after > before).sum()), int((before > after).sum())
    low, high = test.ci95  # widened for few items, and a share cannot gain more than all of it
    test = replace(test, ci95=(max(-1.0, low), min(1.0, high)))
    return replace(test, p_value=mcnemar_p(gained, lost), p_worse=mcnemar_p(lost, gained))


def flips(baseline: SuiteResult, candidate: SuiteResult) -> dict[str, Any]:
    """Items that changed between wrong and right, with examples of both directions."""
    gained: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    for item, old, new in zip(candidate.suite.items, baseline.items, candidate.items, strict=True):
        if old.score is None or new.score is None or (old.score >= 1) == (new.score >= 1):
            continue
        example = {"id": item.id, "expected": item.expected, "before": old.answer, "after": new.answer}
        (gained if new.score >= 1 else lost).append(example)
    return {
        "gained": len(gained),
        "lost": len(lost),
        "examples": {"gained": gained[:EXAMPLES], "lost": lost[:EXAMPLES]},
    }


def effect(comparison: Comparison) -> dict[str, Any]:
    """`{before, after, delta, ci95}` for the verdict: delta is after - before, `better` says which way is good."""
    low, high = comparison.ci95
    lower_is_better = comparison.metric in LOSS_METRICS
    return {
        "before": comparison.before,
        "after": comparison.after,
        "delta": comparison.after - comparison.before,
        "ci95": [-high, -low] if lower_is_better else [low, high],
        "better": "lower" if lower_is_better else "higher",
    }
