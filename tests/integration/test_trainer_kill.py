"""A trainer killed with SIGKILL anywhere ends, after a restart, in the bits of one that never was."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from scripts.reliability.training_farm import TrainingFarm, chats, same, weights_of

WaitUntil = Callable[..., None]


@pytest.fixture
def children() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Trainer processes that must not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


def _farm(root: Path) -> TrainingFarm:
    farm = TrainingFarm(root, hyperparams={"epochs": 6})
    farm.drop(chats(20))
    farm.drop(chats(13, first=40), "more.jsonl")
    return farm


def test_a_real_trainer_process_killed_in_the_middle_of_a_file_goes_on_to_the_same_weights(
    tmp_path: Path, wait_until: WaitUntil, children: list["subprocess.Popen[bytes]"]
) -> None:
    torch.set_num_threads(1)
    straight, killed = _farm(tmp_path / "straight"), _farm(tmp_path / "killed")
    straight.train()
    steps = killed.workspace.metrics_file("main")
    children.append(killed.start())
    wait_until(lambda: steps.is_file() and '"step": 8,' in steps.read_text(), seconds=90, what="step 8")
    os.kill(children[0].pid, signal.SIGKILL)
    children[0].wait()
    children.append(killed.start())
    wait_until(lambda: len(killed.lane("done")) == 2, seconds=120, what="two jobs done")
    children[1].terminate()
    assert children[1].wait(timeout=30) == 0
    assert straight.head().id == killed.head().id
    assert same(weights_of(straight.head()), weights_of(killed.head()))
    assert [p[1:] for p in straight.passes()] == [p[1:] for p in killed.passes()]


def test_the_runner_finds_weights_bit_equal_after_kills_between_the_files_of_a_checkpoint_and_by_chance(
    tmp_path: Path, repository: Path
) -> None:
    argv = [sys.executable, "-m", "scripts.reliability.training_kills", "--points", "4", "--folder", str(tmp_path)]
    done = subprocess.run(argv, cwd=repository, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 final weights bit-equal" in done.stdout
