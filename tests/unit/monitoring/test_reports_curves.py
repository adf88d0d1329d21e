"""Curves whose truth is known, because they are made to have it."""

import collections
import json
import math
from pathlib import Path

import numpy as np
import pytest

from monitoring.reports.curves import read_curve


def made(kind, seed):
    """A train and a held-out curve of this kind: random length, scale, noise and speed."""
    random = np.random.default_rng(seed)
    steps = int(random.integers(200, 2000))
    x = np.arange(1, steps + 1) / steps
    start, floor = random.uniform(3, 9), random.uniform(0.3, 2)
    speed = {"underfitting": random.uniform(0.4, 1.6), "plateau": random.uniform(9, 30)}.get(
        kind, random.uniform(2.9, 4.4)
    )
    level = floor + (start - floor) * np.exp(-speed * x)
    noise = random.uniform(0.01, 0.06)
    train = level * random.lognormal(0, noise, steps)
    at = np.unique(np.linspace(0.08, 1, int(random.integers(8, 16))) * steps).astype(int)
    held = level[at - 1] * 1.05
    if kind == "overfitting":
        turn = random.uniform(0.3, 0.6)
        lowest = 1.05 * level[int(turn * steps)]
        held = np.where(at / steps > turn, lowest * (1 + random.uniform(0.15, 1.0) * (at / steps - turn)), held)
        train = train - np.maximum(0, x - turn) * 0.2 * floor
    if kind == "instability":
        place = int(random.uniform(0.3, 0.9) * steps)
        width = int(random.uniform(0.08, 0.15) * steps)
        train[place : place + width] += random.uniform(1.5, 5) * level[place]
    held = held * random.lognormal(0, 0.004, len(at))
    return list(zip(range(1, steps + 1), train.tolist(), strict=True)), list(
        zip(at.tolist(), held.tolist(), strict=True)
    )


KINDS = ("healthy", "overfitting", "underfitting", "plateau", "instability")


def test_at_least_95_percent_of_200_made_curves_are_read_right():
    wrong = collections.Counter()
    for kind in KINDS:
        for seed in range(40):
            found = read_curve(*made(kind, 1000 * KINDS.index(kind) + seed)).kind
            if found != kind:
                wrong[kind, found] += 1
    assert wrong.total() <= 10, wrong


def real(name):
    """A run of scripts/bench/curves.py as the trainer logged it: train and held-out loss."""
    text = (Path(__file__).parent / "curves" / f"{name}.jsonl").read_text()
    docs = [json.loads(line) for line in text.splitlines()]
    train = [(doc["step"], doc["loss"]) for doc in docs]
    return train, [(doc["step"], doc["validation_loss"]) for doc in docs if "validation_loss" in doc]


def test_a_real_run_over_64_rows_is_over_fitted_and_is_told_the_step_to_stop_at():
    train, held = real("overfitted")
    finding = read_curve(train, held)
    lowest = min(held, key=lambda point: point[1])[0]
    assert (finding.kind, finding.recommendation) == ("overfitting", f"stop at step {lowest}, or train on more data")
    assert lowest == 128
    assert "held-out loss was lowest at step 128 (3.34) and is 6.39 at step 480" in finding.evidence


def test_a_real_run_over_1433_different_rows_is_not_and_may_go_on_while_the_held_out_loss_falls():
    finding = read_curve(*real("steady"))
    assert (finding.kind, finding.recommendation) == ("plateau", "go on while the held-out loss falls")
    assert "from 0.383 at step 90 to 0.257 at step 448" in finding.evidence
    train, held = real("steady")
    flat = [(step, 0.3 + 0.001 * (step % 3)) for step, _loss in held]
    assert read_curve(train, flat).recommendation.startswith("stop at step 81")
    assert read_curve(train).recommendation.startswith("stop at step 81")


def test_a_finding_names_its_evidence_and_what_to_do():
    finding = read_curve(*made("overfitting", 7))
    assert "held-out loss was lowest at step" in finding.evidence
    assert finding.recommendation.startswith("stop at step ")
    assert finding.rule


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_instability_even_in_a_short_run(bad):
    finding = read_curve([(1, 3.0), (2, bad)])
    assert finding.kind == "instability"
    assert "step 2" in finding.evidence


def test_a_handful_of_steps_is_not_read():
    assert read_curve([(n, 3.0) for n in range(5)]).kind == "too_short"
    assert read_curve([]).kind == "too_short"


def test_a_run_that_learns_nothing_is_a_plateau_and_not_healthy():
    random = np.random.default_rng(3)
    flat = [(n, 6.9 + random.normal(0, 0.05)) for n in range(300)]
    assert read_curve(flat).kind == "plateau"


def test_a_run_that_reached_the_floor_is_told_to_stop():
    train = [(n, 5 * math.exp(-n / 20) + 0.001) for n in range(400)]
    finding = read_curve(train)
    assert finding.kind == "plateau"
    assert "nothing is left to learn" in finding.recommendation


def test_few_held_out_points_do_not_make_an_overfit():
    train, held = made("healthy", 5)
    assert read_curve(train, [*held[:1], (held[-1][0], held[0][1] * 3)]).kind == "healthy"


def test_a_constant_loss_divides_by_nothing():
    assert read_curve([(n, 0.0) for n in range(100)]).kind == "plateau"


def falling():
    """A train loss without noise, from 5 to 1."""
    return [(n, 1 + 4 * math.exp(-n / 100)) for n in range(1, 401)]


def test_a_rise_of_one_percent_is_no_overfit():
    held = [(40 * n, 2 - 0.1 * min(n, 5) + 0.0015 * max(0, n - 5)) for n in range(1, 11)]
    assert read_curve(falling(), held).kind != "overfitting"
    steeper = [(step, loss + 0.02 * max(0, step / 40 - 5)) for step, loss in held]
    assert read_curve(falling(), steeper).kind == "overfitting"


def test_a_held_out_loss_that_only_shakes_is_no_overfit():
    held = [(20 * n, 1.5 + (0.2 if n % 2 else -0.2)) for n in range(1, 20)]
    assert read_curve(falling(), held).kind != "overfitting"


def test_a_train_loss_that_climbs_as_well_is_no_overfit():
    held = [(40 * n, 2 - 0.1 * min(n, 5) + 0.1 * max(0, n - 5)) for n in range(1, 11)]
    climbing = [(n, 1 + 4 * math.exp(-n / 20) + max(0, n - 200) * 0.002) for n in range(1, 401)]
    assert read_curve(climbing, held).kind != "overfitting"
    assert read_curve(falling(), held).kind == "overfitting"


@pytest.mark.parametrize(
    ("held", "advice"),
    [
        ([(300, 2.0), (600, 1.5)], "stop at step"),  # two points are no curve
        ([(300, 2.0), (450, 1.995), (600, 1.99)], "stop at step"),  # half a percent
        ([(300, 2.0), (450, 1.8), (600, 1.7)], "go on"),
    ],
)
def test_a_settled_run_is_told_to_go_on_only_for_a_held_out_loss_that_clearly_falls(held, advice):
    settled = [(n, 1 + 4 * math.exp(-n / 40)) for n in range(1, 601)]
    finding = read_curve(settled, held)
    assert finding.kind == "plateau"
    assert finding.recommendation.startswith(advice)
