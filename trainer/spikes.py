"""When a loss has left the ground for good: a robust watch over one job's steps (inside the trainer's arrow).

A step is high when its loss exceeds `factor` times the median of the job's recent steps, and that median by half a
nat as well, so that a converged model's noise is no spike. Ten high steps in a row are a spike. All it knows lies in
JobProgress, which travels in the checkpoint: a resumed job judges as one that was never stopped.
"""

import statistics
from typing import Protocol

STEPS_IN_A_ROW = 10
_WINDOW_STEPS = 64
_FLOOR_NATS = 0.5


class Watched(Protocol):
    """What the watch remembers of a job."""

    recent_losses: list[float]
    high_steps: int


def is_spike(watched: Watched, loss: float, factor: float) -> bool:
    """Take note of a step's loss; True when it is the tenth high one in a row. `factor` 0 switches the watch off."""
    recent = watched.recent_losses
    high = False
    if factor and len(recent) >= STEPS_IN_A_ROW:
        usual = statistics.median(recent)
        high = loss > max(usual * factor, usual + _FLOOR_NATS)
    watched.high_steps = watched.high_steps + 1 if high else 0
    recent.append(loss)
    del recent[:-_WINDOW_STEPS]
    return watched.high_steps >= STEPS_IN_A_ROW
