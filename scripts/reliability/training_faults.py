"""The disk refuses the trainer: one failing call, or no space left. The old checkpoint stays whole, a restart ends in
the same bits.

    python -m scripts.reliability.training_faults [--faults 60] [--full 24] [--cuts 24] [--folder DIR]

Faults: the k-th open for writing, mkdir, write, fsync or rename of a trainer fails once with ENOSPC, EIO, EMFILE, EROFS
or EDQUOT. Full: the root lies on a tmpfs with so little space left that the commits break off at another byte each time
(needs root; what writes the weights is no Python, so nothing but a full disk stops it). The trainer must go on, or end
with exit 4 and one line. Cuts: the root lies on an ext4 image that is copied while the trainer works, as a power cut
would leave it; whatever was committed or done before must be in the copy, whole. Each time a next trainer, with space
and power, must end in weights bit-equal to those of a run that met no fault, with each row trained as often. The
trainers are forked from one parent that has torch loaded.
"""

import argparse
import builtins
import copy
import ctypes
import errno
import io
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core import atomic
from core.errors import DropforgeError
from core.job_queue import JobQueue
from core.paths import Workspace
from scripts.reliability.power_cut import LiveDisk, Mount
from scripts.reliability.training_farm import TrainingFarm
from scripts.reliability.training_kills import ended, fork_trainer, make_farm, problems_of
from trainer.__main__ import exit_code_of

ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS, errno.EDQUOT)
ALLOWED_ENDS = (0, 4)
DISK_BYTES = 96 * 1024 * 1024
CALM_S = 2.0  # about how long a trainer works on the two files


class Faults:
    """Counts the calls that change the disk; fails one of them once."""

    def __init__(self, fail_at: int | None = None, number: int = errno.EIO) -> None:
        self.count = 0
        self._fail_at = fail_at
        self._number = number

    def _pass(self) -> bool:
        self.count += 1
        return self.count == self._fail_at

    def _error(self) -> OSError:
        return OSError(self._number, os.strerror(self._number))

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **named: Any) -> Any:
            if self._pass():
                raise self._error()
            return call(*arguments, **named)

        return guarded

    def _open(self, path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if set(mode) & set("wxa") and self._pass():
            raise self._error()
        return self._real_open(path, mode, *arguments, **named)

    def install(self) -> None:
        """For a process of its own: nothing is put back."""
        for name in ("fsync", "replace", "mkdir", "write"):
            setattr(os, name, self._around(getattr(os, name)))
        self._real_open = builtins.open
        builtins.open = io.open = self._open  # type: ignore[assignment]  # pathlib opens through the latter
        real = atomic._libc

        class Guarded:
            @staticmethod
            def renameat2(*arguments: Any) -> int:
                if self._pass():
                    ctypes.set_errno(self._number)
                    return -1
                return int(real.renameat2(*arguments))

        atomic._libc = Guarded()  # type: ignore[assignment]  # only renameat2 is called on it


def train(farm: TrainingFarm, faults: Faults, count_into: Path | None = None) -> int:
    """Fork a trainer that meets the fault. Returns its exit code, as `python -m trainer` would end."""
    pid = os.fork()
    if pid:
        return ended(pid)
    code = 1
    try:
        faults.install()
        farm.train().run.settle()
        code = 0
        if count_into is not None:
            count_into.write_text(str(faults.count))
    except DropforgeError as error:
        code = exit_code_of(error)
    except BaseException:  # noqa: BLE001  # a traceback is what must not happen: shown and counted
        traceback.print_exc()
    finally:
        os._exit(code)


def after(farm: TrainingFarm, code: int, reference: TrainingFarm) -> list[str]:
    """What is wrong after a fault and a healthy restart; an empty list is the promise kept."""
    problems = [] if code in ALLOWED_ENDS else [f"exit {code}"]
    head = farm.catalogue.head()
    if head is not None and (damage := farm.catalogue.verify(head, training=True)):
        problems.append(f"the newest checkpoint is damaged: {damage[0]}")
    if ended(fork_trainer(farm)) != 0:
        problems.append("the next trainer failed")
    return problems + problems_of(farm, reference)


def with_faults(folder: Path, runs: int, reference: TrainingFarm) -> tuple[Counter[int], list[str]]:
    counted = folder / "count"
    train(make_farm(folder / "counted"), Faults(), counted)
    calls = int(counted.read_text())
    ends: Counter[int] = Counter()
    problems = []
    for run, number in zip(range(runs), itertools.cycle(ERRORS), strict=False):
        at = 1 + run * calls // runs
        farm = make_farm(folder / f"fault-{run}")
        code = train(farm, Faults(at, number))
        ends[code] += 1
        problems += [f"call {at} of {calls}, {errno.errorcode[number]}: {p}" for p in after(farm, code, reference)]
    return ends, problems


@contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """A tmpfs of DISK_BYTES."""
    at.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["/bin/umount", "-l", str(at)], check=True)


def leave_free(disk: Path, size: int) -> Path:
    """Fill a disk until `size` bytes are left. Returns the file that fills it."""
    found = os.statvfs(disk)
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - size))
    return ballast


def with_full_disks(folder: Path, runs: int, reference: TrainingFarm) -> tuple[Counter[int], list[str]]:
    used = sum(path.stat().st_size for path in reference.workspace.checkpoints_dir.rglob("*") if path.is_file())
    ends: Counter[int] = Counter()
    problems = []
    for run in range(runs):
        with small_disk(folder / f"disk-{run}") as disk:
            farm = make_farm(disk / "root")
            free = run * used // runs
            ballast = leave_free(disk, free)
            code = ended(_fork_plain(farm))
            ends[code] += 1
            ballast.unlink()
            problems += [f"{free} bytes left: {p}" for p in after(farm, code, reference)]
    return ends, problems


def _fork_plain(farm: TrainingFarm) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        farm.train().run.settle()
        code = 0
    except DropforgeError as error:
        code = exit_code_of(error)
    except BaseException:  # noqa: BLE001  # as in `train`
        traceback.print_exc()
    finally:
        os._exit(code)


def with_power_cuts(folder: Path, runs: int, reference: TrainingFarm) -> tuple[Counter[int], list[str]]:
    chance = random.Random(0)  # noqa: S311  # moments to cut at
    problems = []
    for run in range(runs):
        live = LiveDisk(folder, folder / f"live-{run}", DISK_BYTES)
        cut = Mount(folder / "cut.img", folder / f"cut-{run}", DISK_BYTES)
        live.make()
        try:
            farm = make_farm(live.at / "root")
            subprocess.run(["/bin/sync", "-f", str(live.at)], check=True)
            pid = fork_trainer(farm)
            time.sleep(chance.uniform(0, CALM_S))
            before = _visible(farm)
            live.cut(cut.image)
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            cut.mount()
            found = copy.copy(farm)
            found.workspace = Workspace(cut.at / "root")
            found.queue = JobQueue(found.workspace)
            missing = before - _visible(found)
            damaged = [c.id for c in found.catalogue.committed() if found.catalogue.verify(c, training=True)]
            problems += [f"cut {run}: missing {sorted(missing)}, damaged {damaged}"] if missing or damaged else []
            problems += [f"cut {run}: {p}" for p in after(found, 0, reference)]
        finally:
            cut.unmount()
            live.unmount()
    return Counter(), problems


def _visible(farm: TrainingFarm) -> set[str]:
    """What a person can see is done: commits and ended jobs."""
    return {c.id for c in farm.catalogue.committed()} | {f"done/{job_id}" for job_id in farm.lane("done")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--full", type=int, default=24)
    parser.add_argument("--cuts", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="where the roots are made; a temporary folder when absent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return run(Path(folder), options.faults, options.full, options.cuts)


def run(folder: Path, faults: int, full: int, cuts: int) -> int:
    """Run the three parts and print their counts. Returns the exit code."""
    torch.set_num_threads(1)  # a fork must not inherit a team of threads
    began = time.monotonic()
    reference = make_farm(folder / "reference")
    if ended(fork_trainer(reference)) != 0:
        print("the run that meets no fault failed")
        return 1
    if os.geteuid() != 0:
        print("full disks and power cuts: not run, mounting needs root")
        full = cuts = 0
    problems = []
    parts = {"faults": (with_faults, faults), "full disks": (with_full_disks, full), "cuts": (with_power_cuts, cuts)}
    for name, (part, runs) in parts.items():
        ends, found = part(folder, runs, reference)
        told = ", ".join(f"{times} x exit {end}" for end, times in sorted(ends.items()))
        print(f"{name}: {runs} runs{f' ({told})' if told else ''}, {len(found)} problems")
        problems += found
    for problem in problems:
        print(" ", problem)
    print(f"training faults: {len(problems)} problems, {time.monotonic() - began:.0f} s")
    return 5 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
