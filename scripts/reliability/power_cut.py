"""Power cuts under the intake: an ext4 image, copied at the cut, mounted again. No acknowledged file may be missing.

    python -m scripts.reliability.power_cut [--cuts 300] [--files 3]

Needs root. The root lies on a loop-mounted ext4 (noauto_da_alloc, so that the filesystem hides no missing fsync). The
daemon runs on it; at a random moment the backing image is copied: what the filesystem has not yet written is missing.
A copy taken so is what a power cut leaves, if nothing is written into the image meanwhile: a slow copy of a busy disk
holds blocks of several moments, which no power cut does. So the image lies on a filesystem of its own, frozen while it
is copied. In the copy every acknowledged file (its job stood in a lane or in rejected/ before the cut) must be there,
whole, with a readable verdict; nothing under a final name may be short.
"""

import argparse
import fcntl
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import DropforgeError
from core.job_queue import Job, JobQueue, data_file_in, is_job_id
from core.paths import LANES, Workspace
from scripts.reliability.intake_farm import REPOSITORY, daemon_argv, fresh, make_root, rows

IMAGE_BYTES = 48 * 1024 * 1024
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h


@dataclass
class Mount:
    """An ext4 image and where it is mounted."""

    image: Path
    at: Path
    size: int = IMAGE_BYTES

    def make(self) -> None:
        with self.image.open("wb") as file:
            file.truncate(self.size)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self.image))
        self.mount()

    def mount(self) -> None:
        self.at.mkdir(parents=True, exist_ok=True)
        _run("mount", "-o", "loop,noauto_da_alloc,commit=1", str(self.image), str(self.at))

    def unmount(self) -> None:
        subprocess.run(["/bin/umount", "-l", str(self.at)], capture_output=True)


class LiveDisk:
    """A disk that the power is cut of: an ext4 image on a filesystem of its own, which stands still for each copy."""

    def __init__(self, folder: Path, at: Path, size: int = IMAGE_BYTES) -> None:
        self.at = at
        self._shelf = Mount(folder / f"{at.name}.shelf", folder / f"{at.name}-shelf", 2 * size + IMAGE_BYTES)
        self._disk = Mount(self._shelf.at / "disk.img", at, size)

    def make(self) -> None:
        self._shelf.make()
        self._disk.make()

    def cut(self, copy: Path) -> None:
        """Copy what has reached the disk at one moment."""
        with _frozen(self._shelf.at):
            _run("cp", "--sparse=always", str(self._disk.image), str(copy))

    def unmount(self) -> None:
        self._disk.unmount()
        self._shelf.unmount()
        self._shelf.image.unlink(missing_ok=True)


@contextmanager
def _frozen(mounted_at: Path) -> Iterator[None]:
    """Let nothing be written to a filesystem; who writes waits (fsfreeze(8))."""
    fd = os.open(mounted_at, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, _FITHAW, 0)
    finally:
        os.close(fd)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def acknowledged(workspace: Workspace) -> dict[str, str]:
    """What a person can see is taken: job id -> sha256 of its data, of every job with a home."""
    seen = {}
    for folder in _homes(workspace):
        try:
            verdict = json.loads((folder / "verdict.json").read_text())
            seen[folder.name] = hashlib.sha256(data_file_in(folder).read_bytes()).hexdigest()
        except (OSError, ValueError, DropforgeError):
            continue
        if verdict["job_id"] != folder.name:
            del seen[folder.name]
    return seen


def _homes(workspace: Workspace) -> list[Path]:
    queue = JobQueue(workspace)
    folders = [job.folder for lane in LANES for job in queue.jobs(lane)]
    refused = sorted(name for name in os.listdir(workspace.rejected_dir) if is_job_id(name))
    return folders + [workspace.rejected_dir / name for name in refused]


def claimed(workspace: Workspace) -> dict[str, str]:
    """What the next start brings home: job id -> sha256 of its data. A rename that was seen may not be on the disk."""
    found = {}
    for folder in workspace.claim_dir.iterdir():
        try:
            found[folder.name] = hashlib.sha256(data_file_in(folder).read_bytes()).hexdigest()
        except (OSError, DropforgeError):  # claimed, and its file still in the inbox
            continue
    return found


def check(workspace: Workspace, before: dict[str, str]) -> list[str]:
    """Compare the world after the cut with what had been acknowledged before it."""
    problems = []
    after = claimed(workspace) | acknowledged(workspace)
    for job_id, digest in before.items():
        if job_id not in after:
            problems.append(f"{job_id} is missing")
        elif after[job_id] != digest:
            problems.append(f"{job_id} has other bytes")
    for folder in _homes(workspace):
        lane = folder.parent.name
        try:
            Job(folder.name, lane, folder).verdict()
            if data_file_in(folder).stat().st_size == 0:
                problems.append(f"{folder.name} is empty under its final name")
        except (OSError, DropforgeError) as error:
            problems.append(f"{folder.name}: {error}")
    return problems


def one_run(folder: Path, cuts: int, files: int, seed: int) -> tuple[int, int, list[str]]:
    """One daemon on one image, cut `cuts` times while files keep coming. Returns cuts, acknowledged files, problems."""
    draw = random.Random(seed)  # noqa: S311  # moments to cut at
    live = LiveDisk(folder, folder / "live")
    cut = Mount(folder / "cut.img", folder / "cut")
    live.make()
    problems, acknowledged_files = [], 0
    try:
        workspace = make_root(live.at / "root")
        os.sync()
        argv = daemon_argv(workspace)
        daemon = subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for at in range(cuts):
            for number in range(files):
                path = workspace.inbox / f"{seed}-{at}-{number}.jsonl"
                aside = path.with_name("." + path.name + ".tmp")
                aside.write_bytes(rows(seed * 100_000 + at * 10 + number))
                aside.rename(path)
            time.sleep(draw.uniform(0.0, 0.4))
            before = acknowledged(workspace)
            live.cut(cut.image)
            acknowledged_files += len(before)
            cut.mount()
            try:
                found = Workspace(cut.at / "root")
                problems += [f"cut {at}: {problem}" for problem in check(found, before)]
            finally:
                cut.unmount()
            _thin(workspace)
        daemon.terminate()
        daemon.wait(60)
    finally:
        live.unmount()
    return cuts, acknowledged_files, problems


def _thin(workspace: Workspace) -> None:
    """Keep the image small: finished jobs of earlier cuts are not needed again."""
    for folder in _homes(workspace)[:-20]:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        folder.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=300)
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dropforge-power-cut")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("power cuts: not run, mounting an image needs root")
        return 0
    began = time.monotonic()
    folder = fresh(options.folder)
    folder.mkdir()
    cuts, files, problems = one_run(folder, options.cuts, options.files, 1)
    print(f"power cuts: {cuts} cuts, {files} acknowledged files looked for,", end=" ")
    print(f"{len(problems)} missing, short or unreadable, {time.monotonic() - began:.0f} s")
    for problem in problems[:20]:
        print(" ", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
