"""Fixtures of the trainer's tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts.reliability.training_farm import TrainingFarm


@pytest.fixture
def make_farm(tmp_path: Path) -> Callable[..., TrainingFarm]:
    """make_farm(name="root", **config sections) -> TrainingFarm, on one thread."""
    torch.set_num_threads(1)
    return lambda name="root", **config: TrainingFarm(tmp_path / name, **config)
