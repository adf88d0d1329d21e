"""What a learning curve says, by named rules with their evidence (beside the arrow trainer -> checkpoints); pure.

Rules, in the order in which the first one that holds is the verdict (x = share of the run, 0..1; L = train loss, median
of WINDOWS equal windows; H = held-out loss at the judged commits):

diverged / instability   a loss that is not finite; or, after the first tenth, a window whose median stands above the
                         lowest earlier one by half of it and by 6 times the noise between windows
overfitting              H has its minimum before its end, the end stands above it by 2 % and 3 times the noise of H,
                         and L fell meanwhile
underfitting             the last quarter brought more than 9 % of the whole improvement: the run ended while falling
plateau                  the last half brought less than 6 % of it, or the whole run improved by less than its own noise
healthy                  none of these

For an exponential fall exp(-k x) the last quarter brings more than 9 % when k < 2.2, and the last half less than 6 %
when k > 5.5: a run is healthy when it is between two and five times as long as its own time constant.

Units    losses in nats per trained token; steps are optimizer steps
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Point = tuple[int, float]  # (step, loss)

WINDOWS = 20
MIN_STEPS = 20
SPIKE_SHARE, SPIKE_NOISE = 0.5, 6.0
RISE_SHARE, RISE_NOISE = 0.02, 3.0
STILL_FALLING, SETTLED = 0.09, 0.06
# Below this many nats a token there is nothing left to learn from the file.
FLOOR = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """One verdict about a curve, with the rule that gave it, the numbers it rests on and what to do."""

    kind: str
    rule: str
    evidence: str
    recommendation: str


def read_curve(train: Sequence[Point], held_out: Sequence[Point] = ()) -> Finding:
    """Say what a run looks like.

    Args:
        train: (step, loss) of every optimizer step, in order. held_out: (step, loss) of judged commits, in order.
    """
    broken = next((step for step, loss in [*train, *held_out] if not math.isfinite(loss)), None)
    if broken is not None:
        return _unstable(f"the loss is not a finite number at step {broken}", broken)
    if len(train) < MIN_STEPS:
        why = f"{len(train)} steps, and a curve is read from {MIN_STEPS}"
        return Finding("too_short", "fewer steps than MIN_STEPS", why, "wait for more data")
    ends, levels = _windows(train)
    return (
        _spike(ends, levels)
        or _overfitted(train, held_out)
        or _by_shape(ends, levels, held_out)
        or Finding("healthy", "no rule holds", _fall(levels), "go on")
    )


def _windows(train: Sequence[Point]) -> tuple[list[int], Floats]:
    parts = np.array_split(np.array([loss for _step, loss in train]), WINDOWS)
    stops = np.cumsum([len(part) for part in parts]) - 1
    return [train[int(stop)][0] for stop in stops], np.array([np.median(part) for part in parts])


def _noise(levels: Floats) -> float:
    """Spread between neighbouring windows once the trend is taken out: the median of absolute second differences.

    White noise of deviation s has second differences of deviation sqrt(6) s, of median absolute value 0.6745 of it.
    """
    return float(np.median(np.abs(np.diff(levels, 2)))) / (0.6745 * math.sqrt(6))


def _spike(ends: Sequence[int], levels: Floats) -> Finding | None:
    noise = _noise(levels)
    first = max(1, WINDOWS // 10)
    lowest = np.minimum.accumulate(levels)[first - 1 : -1]
    above = levels[first:] - lowest
    spikes = np.flatnonzero(
        (above > SPIKE_SHARE * np.abs(lowest)) & (above > SPIKE_NOISE * noise) & (above > 2 * FLOOR)
    )
    if not len(spikes):
        return None
    at = first + int(spikes[0])
    evidence = f"the median loss rose from {lowest[spikes[0]]:.3g} to {levels[at]:.3g} up to step {ends[at]}"
    return _unstable(evidence, ends[at])


def _unstable(evidence: str, step: int) -> Finding:
    rule = "not finite, or a window above the lowest earlier one by half of it and 6 times the noise"
    return Finding(
        "instability", rule, evidence, f"lower the learning rate; go back to a checkpoint before step {step}"
    )


def _overfitted(train: Sequence[Point], held_out: Sequence[Point]) -> Finding | None:
    if len(held_out) < 3:
        return None
    steps, losses = [step for step, _loss in held_out], np.array([loss for _step, loss in held_out])
    best = int(np.argmin(losses))
    tail = float(np.mean(losses[-2:])) if best < len(losses) - 2 else float(losses[-1])
    rise = tail - float(losses[best])
    noise = _noise(losses) if len(losses) >= 5 else 0.0
    after = [loss for step, loss in train if step > steps[best]]
    before = [loss for step, loss in train if step <= steps[best]][-max(1, len(after)) :]
    fell = bool(after and before) and float(np.median(after)) < float(np.median(before))
    if best == len(losses) - 1 or rise <= RISE_SHARE * losses[best] or rise <= RISE_NOISE * noise or not fell:
        return None
    evidence = (
        f"held-out loss was lowest at step {steps[best]} ({losses[best]:.3g}) and is {tail:.3g} at step {steps[-1]}, "
        f"while train loss fell from {np.median(before):.3g} to {np.median(after):.3g}"
    )
    rule = "held-out loss above its minimum by 2 % and 3 times its noise while train loss falls"
    return Finding("overfitting", rule, evidence, f"stop at step {steps[best]}, or train on more data")


def _by_shape(ends: Sequence[int], levels: Floats, held_out: Sequence[Point]) -> Finding | None:
    noise = _noise(levels)
    start, end = float(levels[0]), float(np.mean(levels[-2:]))
    whole = start - end
    last_half = float(np.mean(levels[WINDOWS // 2 - 1 : WINDOWS // 2 + 1])) - end
    last_quarter = float(np.mean(levels[WINDOWS * 3 // 4 - 1 : WINDOWS * 3 // 4 + 1])) - end
    if whole <= max(3 * noise, 0.01 * abs(start)):
        evidence = f"train loss began at {start:.3g} and ended at {end:.3g}, within its noise of {noise:.2g}"
        rule = "the whole run improved by no more than 3 times its noise"
        return Finding("plateau", rule, evidence, "raise the learning rate, or look at whether the data can be learned")
    if last_quarter > STILL_FALLING * whole and last_quarter > 2 * noise and end > FLOOR:
        evidence = f"{100 * last_quarter / whole:.0f} % of the improvement came in the last quarter; {_fall(levels)}"
        advice = "train longer (more epochs or more data), or raise the learning rate"
        return Finding("underfitting", "the last quarter brought more than 9 % of the improvement", evidence, advice)
    if last_half < SETTLED * whole:
        done = end <= FLOOR
        reached = levels <= max(FLOOR, 2 * end) if done else levels - end < SETTLED * whole
        settled = ends[int(np.argmax(reached))]
        advice = "nothing is left to learn from this file" if done else "give new data, or lower the rate from there on"
        rule = "the last half brought less than 6 % of the improvement"
        evidence = f"settled by step {settled}; {_fall(levels)}"
        gain = _gain_since(settled, held_out)
        if gain is not None:
            return Finding("plateau", rule, f"{evidence}; {gain}", "go on while the held-out loss falls")
        return Finding("plateau", rule, evidence, f"stop at step {settled}: {advice}")
    return None


def _gain_since(step: int, held_out: Sequence[Point]) -> str | None:
    """What training after `step` still did for the held-out loss; None when that is no more than its noise."""
    later = [(at, loss) for at, loss in held_out if at >= step]
    if len(later) < 3:
        return None
    (first, before), (best, lowest) = later[0], min(later, key=lambda point: point[1])
    gain = before - lowest
    noise = _noise(np.array([loss for _step, loss in held_out])) if len(held_out) >= 5 else 0.0
    if gain <= RISE_SHARE * before or gain <= RISE_NOISE * noise:
        return None
    return f"the held-out loss still fell, from {before:.3g} at step {first} to {lowest:.3g} at step {best}"


def _fall(levels: Floats) -> str:
    return f"train loss {levels[0]:.3g} -> {levels[-1]:.3g}"
