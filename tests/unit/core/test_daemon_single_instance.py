"""The lock of a root, and children that end with their parent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.daemon import pid_manager
from core.daemon.pid_manager import PARENT_VARIABLE, InstanceLock
from core.errors import AlreadyRunningError


def test_a_second_lock_is_refused_with_pid_and_since(tmp_path: Path) -> None:
    path = tmp_path / "status" / "daemon.lock"
    lock = InstanceLock.acquire(path)
    since = json.loads(path.read_text())["since"]
    with pytest.raises(AlreadyRunningError) as refused:
        InstanceLock.acquire(path, wait_s=0.2)
    assert refused.value.exit_code == 3
    assert f"pid {os.getpid()}" in str(refused.value)
    assert since in str(refused.value)
    lock.release()


def test_a_lock_whose_holder_ends_while_we_wait_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    lock = InstanceLock.acquire(path)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            lock.release()

    ours = InstanceLock.acquire(path, wait_s=5.0, sleep=sleep)
    assert len(waits) == 3
    ours.release()


def test_a_stale_text_in_the_lock_file_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    path.write_text(json.dumps({"pid": 1, "since": "2020-01-01T00:00:00Z", "boot_id": "other"}))
    InstanceLock.acquire(path, wait_s=0.0).release()


def test_a_removed_lock_file_does_not_make_two_holders_possible(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    first = InstanceLock.acquire(path)
    path.unlink()
    second = InstanceLock.acquire(path, wait_s=0.0)
    assert os.path.samestat(os.fstat(second.fd), path.stat())
    with pytest.raises(AlreadyRunningError):
        InstanceLock.acquire(path, wait_s=0.0)
    first.release()
    second.release()


def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "daemon.lock"
    real, removed = pid_manager._try_lock, []

    def remove_first(fd: int) -> bool:
        if not removed:
            removed.append(True)
            path.unlink()
        return real(fd)

    monkeypatch.setattr(pid_manager, "_try_lock", remove_first)
    lock = InstanceLock.acquire(path, sleep=lambda _: None)
    assert os.path.samestat(os.fstat(lock.fd), path.stat())
    lock.release()


def test_a_child_that_inherits_the_descriptor_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    lock = InstanceLock.acquire(path)
    orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fd,))
    lock.release()
    with pytest.raises(AlreadyRunningError):
        InstanceLock.acquire(path, wait_s=0.1)
    orphan.communicate(b"\n")
    InstanceLock.acquire(path, wait_s=5.0).release()


CHILD = """
import time
from core.daemon.pid_manager import die_with_parent
die_with_parent()
print("up", flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=os.environ | {{{PARENT_VARIABLE!r}: str(os.getpid())}},
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_dies_when_its_parent_is_killed(wait_until: Callable[..., None], repository: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=repository) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not _lives(child_pid), what="the end of the child")


def _lives(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_child_whose_parent_is_another_one_ends_at_once(repository: Path) -> None:
    env = os.environ | {PARENT_VARIABLE: "1"}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, cwd=repository, capture_output=True, timeout=30)
    assert done.returncode == 1
    assert done.stdout == b""
    assert time.monotonic() - began < 30


def test_a_start_by_hand_asks_for_nothing(repository: Path) -> None:
    code = "from core.daemon.pid_manager import die_with_parent; die_with_parent(); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, timeout=30)
    assert done.stdout.strip() == b"alive"
