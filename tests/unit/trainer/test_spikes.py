"""A spike is ten high losses in a row, measured against the job's own median."""

from trainer.spikes import STEPS_IN_A_ROW, is_spike
from trainer.state import JobProgress


def _judged(losses: list[float], factor: float = 5.0) -> list[bool]:
    progress = JobProgress("j", "f", "s", "g", 1, 1)
    return [is_spike(progress, loss, factor) for loss in losses]


def test_ten_high_steps_in_a_row_are_a_spike_and_nine_are_none() -> None:
    calm = [1.0] * 20
    assert not any(_judged([*calm, *[9.0] * (STEPS_IN_A_ROW - 1), 1.0, 9.0]))
    assert _judged([*calm, *[9.0] * STEPS_IN_A_ROW])[-1]


def test_a_converged_models_noise_is_no_spike() -> None:
    assert not any(_judged([0.001] * 20 + [0.05] * 30))


def test_a_job_that_begins_high_is_no_spike_since_it_has_no_ground_yet() -> None:
    assert not any(_judged([9.0] * 40))


def test_factor_zero_switches_the_watch_off() -> None:
    assert not any(_judged([1.0] * 20 + [99.0] * 30, factor=0))
