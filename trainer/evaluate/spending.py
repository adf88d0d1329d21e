"""How the chance of a false promotion is spent over repeated looks (arrow: judge); pure.

Each commit is judged against the same serving checkpoint on much the same items, so a candidate that is no better
gets a new try at every commit. The whole budget ALPHA is therefore spent over the sequence of looks: look k gets
ALPHA / (k (k + 1)), whose sum over all looks is ALPHA (a telescoping series). By the union bound the chance of any
false promotion before a true one stays below ALPHA however strongly the looks depend on each other. The first look
gets ALPHA / 2 = 0.025. A promotion changes what serves, so the count starts again at 1: an endless run can always
promote. FLOOR keeps a late look possible at all; it is reached after 70 looks and adds less than ALPHA / 10 in the
first 500.
"""

import math

from trainer.evaluate.significance import RESAMPLES

ALPHA = 0.05
FLOOR = 1e-5


def alpha_at(look: int, *, total: float = ALPHA) -> float:
    """The one-sided level of look number `look` (1 is the first since the last promotion)."""
    if look < 1:
        raise ValueError("looks count from 1")
    return max(total / (look * (look + 1)), FLOOR)


def resamples_for(alpha: float) -> int:
    """How many bootstrap resamples let a p-value fall clearly below `alpha`: 10,000, more for late looks."""
    return max(RESAMPLES, math.ceil(2 / alpha))
