"""kill -9 of the trainer at 36 points: the final weights equal, bit for bit, those of a trainer that was never killed.

    python -m scripts.reliability.training_kills [--points 36] [--folder DIR]

Two files are trained with a commit every third step. Two thirds of the kills come from inside, just before or just
after the k-th fsync or rename of the process, spread over all of them, so that they fall between the files of a
checkpoint, between a commit and its verdict, between a verdict and its move; the others come from outside, at a
random moment, every second of them to the whole process group. Then a fresh trainer goes on. The trainers are forked
from one parent that has torch loaded, which saves five seconds a start; each is a process of its own that a real
SIGKILL ends.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core import atomic
from scripts.reliability.training_farm import TrainingFarm, chats, same, weights_of

SETTINGS = {"hyperparams": {"epochs": 4}}


def make_farm(root: Path) -> TrainingFarm:
    farm = TrainingFarm(root, **SETTINGS)
    farm.drop(chats(20))
    farm.drop(chats(13, first=40), "more.jsonl")
    return farm


class Points:
    """Counts the moments at which the disk's state changes: before and after each fsync and rename of this process."""

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._pass()
            result = call(*arguments, **named)
            self._pass()
            return result

        return counted

    def _pass(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        os.fsync = self.around(os.fsync)  # type: ignore[assignment]  # the same call, counted
        os.replace = self.around(os.replace)  # type: ignore[assignment]  # the same
        real = atomic._libc

        class Counted:
            renameat2 = staticmethod(self.around(real.renameat2))

        atomic._libc = Counted()  # type: ignore[assignment]  # only renameat2 is called on it


def fork_trainer(farm: TrainingFarm, kill_at: int | None = None, *, count_into: Path | None = None) -> int:
    """Fork a trainer over the farm. Returns its pid; it ends with 0 when the queue is done, unless it is killed."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        points = Points(kill_at)
        points.install()
        farm.train().run.settle()
        if count_into is not None:
            count_into.write_text(str(points.count))
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child. Returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_from_outside(farm: TrainingFarm, after_s: float, *, group: bool) -> None:
    pid = fork_trainer(farm)
    time.sleep(after_s)
    (os.killpg if group else os.kill)(pid, signal.SIGKILL)
    ended(pid)


def problems_of(farm: TrainingFarm, reference: TrainingFarm) -> list[str]:
    """What differs from the run that was never killed; an empty list is the promise kept."""
    problems = []
    if len(farm.lane("done")) != 2:
        problems.append(f"{len(farm.lane('done'))} of 2 jobs done")
    if farm.head().id != reference.head().id:
        problems.append(f"head {farm.head().id}, not {reference.head().id}")
    elif not same(weights_of(farm.head()), weights_of(reference.head())):
        problems.append("weights or moments differ")
    if [p[1:] for p in farm.passes()] != [p[1:] for p in reference.passes()]:
        problems.append("other row passes, or in another order")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=36)
    parser.add_argument("--folder", type=Path, help="where the roots are made; a temporary folder when absent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return run(Path(folder), options.points)


def run(folder: Path, kills: int) -> int:
    """Run all kills and print the count. Returns the exit code."""
    torch.set_num_threads(1)  # a fork must not inherit a team of threads
    began = time.monotonic()
    reference, counted = make_farm(folder / "reference"), folder / "count"
    started = time.monotonic()
    if ended(fork_trainer(reference, count_into=counted)) != 0:
        print("the run that is never killed failed")
        return 1
    calm_s, moments = time.monotonic() - started, int(counted.read_text())
    inside, kept = kills * 2 // 3, 0
    chance = random.Random(0)  # noqa: S311  # moments to kill at need no secrecy
    for number in range(kills):
        farm = make_farm(folder / f"killed-{number}")
        if number < inside:
            where = f"at moment {(kill_at := 1 + number * moments // inside)} of {moments}"
            ended(fork_trainer(farm, kill_at))
        else:
            after_s = chance.uniform(0, calm_s)
            where = f"after {after_s:.2f} s"
            kill_from_outside(farm, after_s, group=number % 2 == 0)
        problems = [] if ended(fork_trainer(farm)) == 0 else ["the next trainer failed"]
        problems += problems_of(farm, reference)
        kept += not problems
        if problems:
            print(f"killed {where}: {'; '.join(problems)}")
        shutil.rmtree(farm.workspace.root)
    print(f"{kept} of {kills} final weights bit-equal to the run never killed, {time.monotonic() - began:.0f} s")
    return 0 if kept == kills else 5


if __name__ == "__main__":
    sys.exit(main())
