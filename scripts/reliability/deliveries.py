"""Every way to deliver a file, the inbox made anew, and thousands at once while the daemon stands still.

    python -m scripts.reliability.deliveries [--times 3] [--burst 6000] [--settle 2]

Prints for each way how many were taken and the slowest time from the end of the delivery to the queue.
"""

import argparse
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from core.status import read_status
from scripts.reliability.intake_farm import REPOSITORY, Dropped, count, daemon_argv, fresh, make_root, patiently, rows

Way = Callable[[Path, Path, bytes], None]


def _run(*argv: str, **more: object) -> None:
    subprocess.run(argv, check=True, capture_output=True, **more)  # type: ignore[call-overload]


def by_cp(source: Path, target: Path, content: bytes) -> None:
    _run("cp", str(source), str(target))


def by_mv(source: Path, target: Path, content: bytes) -> None:
    _run("mv", str(source), str(target))


def by_mv_from_another_filesystem(source: Path, target: Path, content: bytes) -> None:
    aside = Path("/dev/shm") / target.name  # noqa: S108  # a tmpfs: the point is that it is another filesystem
    aside.write_bytes(content)
    _run("mv", str(aside), str(target))


def by_link(source: Path, target: Path, content: bytes) -> None:
    os.link(source, target)


def by_rename_from_tmp(source: Path, target: Path, content: bytes) -> None:
    aside = target.with_name(target.name + ".tmp")
    aside.write_bytes(content)
    aside.rename(target)


def by_rsync(source: Path, target: Path, content: bytes) -> None:
    _run("rsync", "-t", str(source), str(target))


def by_rsync_inplace(source: Path, target: Path, content: bytes) -> None:
    _run("rsync", "--inplace", str(source), str(target))


def by_tee(source: Path, target: Path, content: bytes) -> None:
    _run("tee", "-a", str(target), input=content)


def by_mmap(source: Path, target: Path, content: bytes) -> None:
    with target.open("w+b") as file:
        file.truncate(len(content))
        with mmap.mmap(file.fileno(), len(content)) as view:
            view[:] = content


def by_sendfile(source: Path, target: Path, content: bytes) -> None:
    with source.open("rb") as given, target.open("wb") as taken:
        os.sendfile(taken.fileno(), given.fileno(), 0, len(content))


def by_tar(source: Path, target: Path, content: bytes) -> None:
    bundle = source.with_suffix(".tar")
    with tarfile.open(bundle, "w") as tar:
        tar.add(source, target.name)
    _run("tar", "-xf", str(bundle), "-C", str(target.parent))


def by_touch_of_an_old_file(source: Path, target: Path, content: bytes) -> None:
    shutil.copy2(source, target)
    os.utime(target, (1, 1))
    target.touch()


def by_slow_pieces(source: Path, target: Path, content: bytes) -> None:
    """Pauses longer than the settle window, the file open all the time."""
    with target.open("wb") as file:
        for at in range(0, len(content), 40):
            file.write(content[at : at + 40])
            file.flush()
            time.sleep(0.4)


def by_socket(source: Path, target: Path, content: bytes) -> None:
    """As scp does: bytes from a peer, written as they come."""
    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=lambda: (theirs.sendall(content), theirs.close()))
    sender.start()
    with target.open("wb") as file:
        while piece := ours.recv(64):
            file.write(piece)
    sender.join()
    ours.close()


def by_dd(source: Path, target: Path, content: bytes) -> None:
    _run("dd", f"if={source}", f"of={target}", "bs=64", "conv=notrunc")


def by_install(source: Path, target: Path, content: bytes) -> None:
    _run("install", "-m", "600", str(source), str(target))


def by_shell(source: Path, target: Path, content: bytes) -> None:
    _run("sh", "-c", 'cat "$1" > "$2"', "sh", str(source), str(target))


WAYS: list[Way] = [
    by_cp, by_mv, by_mv_from_another_filesystem, by_link, by_rename_from_tmp, by_rsync, by_rsync_inplace, by_tee,
    by_mmap, by_sendfile, by_tar, by_touch_of_an_old_file, by_slow_pieces, by_socket, by_dd, by_install, by_shell,
]  # fmt: skip


class Yard:
    """A root with a living daemon, and what was delivered."""

    def __init__(self, folder: Path, settle_s: float) -> None:
        self.workspace = make_root(fresh(folder), settle_s=settle_s)
        self.outside = fresh(folder.with_name(folder.name + "-outside"))
        self.outside.mkdir()
        self.dropped = Dropped()
        self.number = 0
        self.process = subprocess.Popen(
            daemon_argv(self.workspace), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        patiently(lambda: (read_status(self.workspace.status_file("daemon.json")) or {}).get("state") == "idle", 300)

    def deliver(self, way: Way) -> float:
        """Seconds from the end of the delivery until the file is in the queue; inf when it never came."""
        self.number += 1
        content = rows(self.number)
        source = self.outside / f"{self.number}.jsonl"
        source.write_bytes(content)
        target = self.workspace.inbox / f"{way.__name__}-{self.number}.jsonl"
        self.dropped.note(content, target.name)
        way(source, target, content)
        began = time.monotonic()
        came = patiently(lambda: any(self.workspace.lane("normal").glob(f"*/{target.name}")), 60)
        return time.monotonic() - began if came else float("inf")

    def homes(self) -> int:
        return len(os.listdir(self.workspace.lane("normal")))

    def burst(self, number: int) -> float:
        """`number` files while the daemon is stopped (its event queue overflows). Seconds until all are home."""
        os.kill(self.process.pid, signal.SIGSTOP)
        before = self.homes()
        for at in range(number):
            self.dropped.drop(self.workspace.inbox / f"burst-{at}.jsonl", rows(1_000_000 + at, 1))
        os.kill(self.process.pid, signal.SIGCONT)
        began = time.monotonic()
        patiently(lambda: self.homes() >= before + number, 900)
        return time.monotonic() - began

    def make_inbox_anew(self) -> float:
        """rm -rf inbox && mkdir inbox, then a drop. Seconds until it is taken."""
        shutil.rmtree(self.workspace.inbox)
        time.sleep(0.2)
        self.workspace.inbox.mkdir()
        return self.deliver(by_rename_from_tmp)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def report(yard: Yard, times: int, settle_s: float) -> bool:
    """Deliver in every way; print one line a way. Returns whether all came in time."""
    waits: list[float] = []
    for way in WAYS:
        took = [yard.deliver(way) for _ in range(times)]
        waits += took
        print(f"  {way.__name__[3:]:28} {sum(t < 60 for t in took)} of {times}, slowest {max(took):.2f} s")
    waits.sort()
    p95 = waits[int(0.95 * (len(waits) - 1))]
    print(f"deliveries: {sum(t < 60 for t in waits)} of {len(waits)} taken, p95 {p95:.2f} s at settle {settle_s:g} s")
    return p95 <= settle_s + 3 and waits[-1] < 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--burst", type=int, default=6000)
    parser.add_argument("--settle", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dropforge-deliveries")
    options = parser.parse_args()
    yard = Yard(options.folder, options.settle)
    try:
        good = report(yard, options.times, options.settle)
        again = yard.make_inbox_anew()
        print(f"inbox removed and made anew: the next file was taken after {again:.1f} s")
        took = yard.burst(options.burst)
        found = count(yard.workspace, yard.dropped)
        print(f"burst: {options.burst} files while the daemon stood still, all home after {took:.0f} s; {found}")
    finally:
        code = yard.end()
    print(f"the daemon ended with {code}")
    return 0 if good and again < 20 and found.ok and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
