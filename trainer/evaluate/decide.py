"""The decision about a candidate (arrow: judge); pure rules over numbers already measured.

promote      better on a primary suite, with p below what this look may spend, and no guard fell beyond its tolerance
keep         anything else that was compared: no significant gain, a guard fell, a loss that is not finite
             (a guard falls when it drops by more than its tolerance and chance alone does not explain the drop: without
             the second half, three guards of 100 items would stop one equal candidate in ten)
no_baseline  nothing serves, or the primary suites hold fewer than MIN_ITEMS items; promoted if the deployment gate
             passes, and named so
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_ITEMS = 30
# Chance that any guard stops a candidate which is no worse; shared by the guards.
GUARD_LEVEL = 0.05
PROMOTING = ("promote", "no_baseline")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One suite, candidate against baseline. `gain` is positive when the candidate is better."""

    name: str
    role: str  # primary: decides; guard: must not fall; report: only shown
    metric: str
    items: int
    before: float
    after: float
    gain: float
    ci95: tuple[float, float]
    p_value: float
    p_worse: float
    tolerance: float
    noise: float = 0.0  # measured difference of a checkpoint from itself, in the metric's unit; less is no difference

    def falls(self, level: float) -> bool:
        """Worse by more than the tolerance, and clearly so."""
        return -self.gain > self.tolerance + self.noise and self.p_worse < level


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a candidate, with the evidence in one sentence."""

    decision: str
    p_value: float | None
    reason: str
    alpha: float | None = None
    look: int | None = None

    @property
    def promotes(self) -> bool:
        return self.decision in PROMOTING


def decide(
    *,
    finite: bool,
    serving: str | None,
    items: int,
    look: int,
    alpha: float,
    comparisons: Sequence[Comparison],
) -> Decision:
    """Apply the rules above.

    Args:
        finite: every loss of the candidate is a number.
        serving: id of the baseline; None when nothing serves.
        items: held-out items in the primary suites.
        look: how many times this baseline has been challenged since the last promotion, this one included.
        alpha: the one-sided level this look may spend (spending.alpha_at).
        comparisons: one a suite, same items on both sides; empty without a baseline.
    """
    if not finite:
        return Decision("keep", None, "its loss is not a finite number on some items; such a model is never promoted")
    if serving is None:
        return Decision("no_baseline", None, "nothing serves yet, so there is nothing to compare with")
    guards = [c for c in comparisons if c.role == "guard"]
    fallen = [c for c in guards if c.falls(GUARD_LEVEL / len(guards))]
    if fallen:
        worst = max(fallen, key=lambda c: -c.gain - c.tolerance)
        reason = f"the guard {worst.name} fell beyond its tolerance of {worst.tolerance:g}: {_numbers(worst)}"
        return Decision("keep", None, reason)
    if items < MIN_ITEMS:
        reason = f"only {items} held-out items, and a comparison needs {MIN_ITEMS}: served uncompared with {serving}"
        return Decision("no_baseline", None, reason)
    return _by_evidence([c for c in comparisons if c.role == "primary"], look, alpha)


def guards_note(sizes: Sequence[tuple[int, int]]) -> str:
    """What to add to a reason when guards were asked in part: with fewer items only a larger drop can be told.

    Args:
        sizes: (items, items asked) of each guard suite.
    """
    items, asked = sum(size for size, _asked in sizes), sum(count for _size, count in sizes)
    if asked == items:
        return ""
    # n answers lost and none gained have p = 2^-n.
    lost = math.floor(math.log2(len(sizes) / GUARD_LEVEL)) + 1
    drop = max(lost / count for _size, count in sizes if count)
    shown = f"a drop of less than {min(1.0, drop):.0%} in one of them would not have shown"
    return f"; {asked} of {items} guard items asked in evaluation.budget_s: {shown}"


def regressed(comparisons: Sequence[Comparison]) -> bool:
    """The candidate is clearly worse: the 95 % interval of a primary suite lies below 0, or a guard fell."""
    guards = [c for c in comparisons if c.role == "guard"]
    worse = any(c.role == "primary" and c.ci95[1] < 0 and -c.gain > c.noise for c in comparisons)
    return worse or any(c.falls(GUARD_LEVEL / len(guards)) for c in guards)


def _by_evidence(primary: Sequence[Comparison], look: int, total: float) -> Decision:
    """The best primary suite at its share of the look's alpha (Bonferroni); none of the others may be clearly worse."""
    alpha = total / len(primary)
    best = min(primary, key=lambda c: c.p_value)
    fallen = [c for c in primary if c is not best and c.falls(GUARD_LEVEL / len(primary))]
    if fallen:
        reason = f"{fallen[0].name} fell beyond its tolerance of {fallen[0].tolerance:g}: {_numbers(fallen[0])}"
        return Decision("keep", best.p_value, reason, alpha, look)
    evidence = f"{_numbers(best)}, p {best.p_value:.2g} against {alpha:.2g} for look {look}"
    if best.p_value < alpha and best.gain > best.noise:
        return Decision("promote", best.p_value, f"better on {best.name}: {evidence}", alpha, look)
    return Decision("keep", best.p_value, f"no significant gain on {best.name}: {evidence}", alpha, look)


def _numbers(comparison: Comparison) -> str:
    return f"{comparison.metric} {comparison.before:.4g} -> {comparison.after:.4g} over {comparison.items} items"
