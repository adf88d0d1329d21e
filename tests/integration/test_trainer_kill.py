"""A real trainer process killed with SIGKILL anywhere ends, after a restart, in the bits of one that never was."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.reliability.training_farm import TrainingFarm, chats, same, weights_of

WaitUntil = Callable[..., None]


def _farm(root: Path) -> TrainingFarm:
    farm = TrainingFarm(root, hyperparams={"epochs": 6})
    farm.drop(chats(20))
    farm.drop(chats(13, first=40), "more.jsonl")
    return farm


@pytest.fixture
def children() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Trainer processes that must not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


def test_weights_after_kills_equal_those_of_a_trainer_that_was_never_killed(
    tmp_path: Path, wait_until: WaitUntil, children: list["subprocess.Popen[bytes]"]
) -> None:
    straight, killed = _farm(tmp_path / "straight"), _farm(tmp_path / "killed")

    def start(farm: TrainingFarm) -> "subprocess.Popen[bytes]":
        children.append(farm.start())
        return children[-1]

    calm = start(straight)
    for step in (2, 8, 33):
        child = start(killed)

        def there(step: int = step) -> bool:
            lines = killed.workspace.metrics_file("main")
            return lines.is_file() and f'"step": {step},' in lines.read_text()

        wait_until(there, seconds=60, what=f"step {step}")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    start(killed)
    for farm in (straight, killed):
        wait_until(lambda farm=farm: len(farm.lane("done")) == 2, seconds=90, what="two jobs done")
    calm.terminate()
    assert calm.wait(timeout=30) == 0
    assert same(weights_of(straight.head()), weights_of(killed.head()))
    assert straight.head().id == killed.head().id
    assert [p[1:] for p in straight.passes()] == [p[1:] for p in killed.passes()]
