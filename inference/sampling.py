"""From a row of logits to a token, with a generator of its own for each choice (inside the inference server; torch-
free).

Order of operations as in the API we imitate: logit_bias, penalties, temperature, top_k, top_p. Log-probabilities are
those of the model's
own distribution, before any of these. Temperature 0 is arg max, ties to the smallest id.
"""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from inference.generation import LogitsRow, TokenScore


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one choice is sampled. `top_k` 0 and `top_p` 1.0 switch the filters off; penalties are -2..2."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def plain_greedy(self) -> bool:
        """True when the token is the arg max of the raw logits."""
        return (
            self.temperature == 0 and not self.logit_bias and not self.presence_penalty and not self.frequency_penalty
        )


class RuleError(ValueError):
    """The rule of an answer cannot be followed any further. The message is fit for the caller."""


class Rule(Protocol):
    """What an answer must keep to; each choice has its own. `kept_by`: whether the whole text keeps to it."""

    def restrict(self, scores_V: LogitsRow) -> None: ...

    def take(self, token: int) -> None: ...

    @property
    def ended(self) -> bool: ...

    def kept_by(self, text: str) -> bool: ...


class Sampler:
    """Draws the tokens of one choice. The same seed and the same logits give the same tokens."""

    def __init__(self, how: Sampling, choice: int = 0, rule: Rule | None = None) -> None:
        self._how = how
        self._rule = rule
        self._counts: Counter[int] = Counter()
        entropy = secrets.randbits(64) if how.seed is None else how.seed & (2**64 - 1)
        self._rng = np.random.Generator(np.random.PCG64([entropy, choice]))

    @property
    def plain_greedy(self) -> bool:
        return self._how.plain_greedy and self._rule is None

    def draw(self, logits_V: LogitsRow) -> int:
        """The next token. Raises FloatingPointError when the logits are not finite, RuleError."""
        if self.plain_greedy:
            return _finite_peak(logits_V)
        scores_V = self._adjusted(logits_V)
        token = _finite_peak(scores_V) if self._how.temperature == 0 else self._pick(scores_V)
        self._counts[token] += 1
        if self._rule is not None:
            self._rule.take(token)
        return token

    def _adjusted(self, logits_V: LogitsRow) -> LogitsRow:
        scores_V = logits_V.astype(np.float32, copy=True)
        for token, bias in self._how.logit_bias.items():
            scores_V[token] += bias
        for token, count in self._counts.items():
            scores_V[token] -= self._how.presence_penalty + self._how.frequency_penalty * count
        if self._rule is not None:
            self._rule.restrict(scores_V)  # last: no bias opens what the rule forbids
        return scores_V

    def _pick(self, scores_V: LogitsRow) -> int:
        order = self._candidates(scores_V)
        scaled = scores_V[order].astype(np.float64) / self._how.temperature
        weights = np.exp(scaled - scaled.max())
        weights /= weights.sum()
        if not np.isfinite(weights[0]):
            raise FloatingPointError("logits that are not finite")
        if self._how.top_p < 1.0:
            by_weight = np.argsort(-weights, kind="stable")
            reached = np.cumsum(weights[by_weight])
            keep = by_weight[: int(np.searchsorted(reached, self._how.top_p)) + 1]
            order, weights = order[keep], weights[keep] / weights[keep].sum()
        reached = np.cumsum(weights)
        place = int(np.searchsorted(reached, self._rng.random() * reached[-1], side="right"))
        return int(order[min(place, len(order) - 1)])

    def _candidates(self, scores_V: LogitsRow) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        k = self._how.top_k
        if not 0 < k < len(scores_V):
            return np.arange(len(scores_V))
        return np.sort(np.argpartition(-scores_V, k - 1)[:k])


def _finite_peak(scores_V: LogitsRow) -> int:
    """The arg max; NumPy's stops at the first NaN, so a NaN anywhere is found here. Raises FloatingPointError."""
    token = int(np.argmax(scores_V))
    if not np.isfinite(scores_V[token]):
        raise FloatingPointError("logits that are not finite")
    return token


def score_row(logits_V: LogitsRow, token: int, top: int) -> TokenScore:
    """Log-probability of `token` under the raw logits, and the `top` most likely tokens (ties to the smallest id)."""
    wide_V = logits_V.astype(np.float64)
    peak = wide_V.max()
    log_total = peak + np.log(np.exp(wide_V - peak).sum())
    best: tuple[tuple[int, float], ...] = ()
    if top:
        last = min(top, len(wide_V)) - 1
        few = np.flatnonzero(-wide_V <= np.partition(-wide_V, last)[last])  # all that tie with the last one too
        ranked = few[np.argsort(-wide_V[few], kind="stable")][:top]
        best = tuple((int(i), float(wide_V[i] - log_total)) for i in ranked)
    return TokenScore(float(wide_V[token] - log_total), best)
