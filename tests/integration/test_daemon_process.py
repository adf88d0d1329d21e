"""The daemon as a process: signals, kills, a foreign inbox, a full disk, configuration edits. Real gates throughout."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from core.job_queue import JobQueue
from core.paths import Workspace, schema_file
from core.status import read_status

Wait = Callable[..., None]
ROW = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "yes"}]}\n'


def schema(name: str) -> Any:
    return json.loads(schema_file(name).read_text())


class Running:
    """One root and the daemon that runs on it."""

    def __init__(self, root: Path, repository: Path, wait: Wait) -> None:
        self.workspace, self._repository, self._wait = Workspace(root), repository, wait
        subprocess.run(
            [sys.executable, "-m", "core.cli", "init", str(root)], cwd=repository, check=True, capture_output=True
        )
        self.configure(inbox={"settle_s": 0}, validation={"level": "quick"})
        self.processes: list[subprocess.Popen[bytes]] = []

    def configure(self, **sections: Any) -> None:
        document = json.loads(self.workspace.config_file.read_text())
        for name, value in sections.items():
            document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
        self.workspace.config_file.write_text(json.dumps(document))

    def start(self, *options: str, wait: bool = True) -> "subprocess.Popen[bytes]":
        argv = [sys.executable, "-m", "core.daemon", "--root", str(self.workspace.root), *options]
        process = subprocess.Popen(argv, cwd=self._repository, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.processes.append(process)
        if wait:
            self._wait(lambda: self.status().get("pid") == process.pid, 60, "the daemon's first heartbeat")
        return process

    def status(self) -> dict[str, Any]:
        return read_status(self.workspace.status_file("daemon.json")) or {}

    def drop(self, name: str, text: str) -> None:
        aside = self.workspace.inbox / f".{name}.tmp"
        aside.write_text(ROW % text)
        aside.rename(self.workspace.inbox / name)

    def queued(self) -> list[str]:
        return [job.data_file.name for job in JobQueue(self.workspace).jobs("normal")]

    def take(self, name: str, text: str | None = None) -> None:
        """Drop a file and wait until it is queued."""
        self.drop(name, text or name)
        self._wait(lambda: name in self.queued(), 60, f"{name} in the queue")

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = self.workspace.status_file("events.jsonl").read_text().splitlines()
        return [doc for line in lines if (doc := json.loads(line))["kind"] == kind]


@pytest.fixture
def running(tmp_path: Path, repository: Path, wait_until: Wait) -> Iterator[Running]:
    made = Running(tmp_path / "root", repository, wait_until)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_the_daemon_never_imports_torch_and_no_start_waits_for_sqlalchemy_or_requests(repository: Path) -> None:
    heavy = {"torch", "transformers", "flask", "sqlalchemy", "requests"}
    code = f"import sys, core.daemon.__main__; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sigterm_ends_it_cleanly_and_says_so_even_without_a_temporary_folder(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    process = running.start("--intake-only")
    running.take("a.jsonl")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert (running.status()["state"], running.status()["reason"]) == ("stopped", "signal")
    assert running.status()["queue"]["normal"] == 1


def test_a_stop_file_ends_it_and_is_acknowledged(running: Running) -> None:
    process = running.start("--intake-only")
    (running.workspace.control_dir / "stop").touch()
    assert process.wait(30) == 0
    said = read_status(running.workspace.status_file("control.json")) or {}
    assert said["command"] == "stop"
    assert said["effective_at"] is not None


def test_a_second_daemon_ends_with_3_and_names_the_first(running: Running) -> None:
    first = running.start("--intake-only")
    second = running.start("--intake-only", wait=False)
    _, error = second.communicate(timeout=30)
    assert second.returncode == 3
    assert f"pid {first.pid}" in error.decode()


def test_after_a_kill_no_process_is_left_and_the_next_start_goes_on(running: Running, wait_until: Wait) -> None:
    process = running.start("--intake-only")
    running.take("a.jsonl")
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait(10)
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 20)
    running.start("--intake-only")
    running.take("b.jsonl")
    assert running.queued() == ["a.jsonl", "b.jsonl"]


def test_a_killed_worker_costs_no_file(running: Running) -> None:
    process = running.start("--intake-only")
    running.take("a.jsonl")
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    running.take("b.jsonl")
    assert process.poll() is None


def test_a_symlinked_inbox_is_not_followed_and_a_folder_put_back_is_watched(
    running: Running, wait_until: Wait, tmp_path: Path
) -> None:
    running.start("--intake-only")
    inbox, elsewhere = running.workspace.inbox, tmp_path / "elsewhere"
    aside = inbox.rename(tmp_path / "aside")
    elsewhere.mkdir()
    (elsewhere / "foreign.jsonl").write_text(ROW % "foreign")
    inbox.symlink_to(elsewhere)
    wait_until(lambda: running.status()["state"] == "blocked", 20, "the state blocked")
    assert "symbolic link" in running.status()["reason"]
    assert (elsewhere / "foreign.jsonl").exists()
    inbox.unlink()
    aside.rename(inbox)
    running.take("a.jsonl")
    assert running.queued() == ["a.jsonl"]
    assert running.status()["state"] == "idle"


def test_an_inbox_removed_and_made_again_is_watched_again(running: Running) -> None:
    running.start("--intake-only")
    running.take("a.jsonl")
    shutil.rmtree(running.workspace.inbox)
    running.workspace.inbox.mkdir()
    running.take("b.jsonl")
    assert running.workspace.control_dir.is_dir()


def test_an_edit_of_the_configuration_is_taken_or_refused_by_name(running: Running, wait_until: Wait) -> None:
    running.start("--intake-only")
    good = running.workspace.config_file.read_text()
    running.configure(inbox={"settel_s": 1})
    wait_until(lambda: running.status()["config_error"], 20, "the refusal")
    assert "inbox.settel_s" in running.status()["config_error"]
    running.workspace.config_file.write_text('{"model_name": "gp')
    wait_until(lambda: "settel_s" not in running.status()["config_error"], 20, "the next refusal")
    running.workspace.config_file.write_text(good)
    running.configure(model_name="another")
    wait_until(lambda: "dropforge-tiny" in (running.status()["config_error"] or ""), 20, "both values")
    running.workspace.config_file.write_text(good)
    running.configure(inbox={"allow_duplicates": True})
    wait_until(lambda: running.status()["config_error"] is None, 20, "the end of the error")
    running.take("a.jsonl", "same")
    running.take("b.jsonl", "same")


def test_a_full_disk_blocks_with_numbers_and_heals_by_itself(
    tmp_path: Path, repository: Path, wait_until: Wait
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(small)]
    subprocess.run(argv, check=True, capture_output=True)
    try:
        running = Running(small / "root", repository, wait_until)
        process = running.start("--intake-only")
        filler = small / "filler"
        filler.write_bytes(b"x" * 30_000_000)
        wait_until(lambda: running.status()["state"] == "blocked", 20, "the state blocked")
        assert "disk full: need 16.8 MB, have" in running.status()["reason"]
        running.drop("a.jsonl", "a")
        filler.unlink()
        wait_until(lambda: running.queued() == ["a.jsonl"], 30, "a.jsonl in the queue")
        wait_until(lambda: running.status()["state"] == "idle", 20, "the state idle")
        process.terminate()
        assert process.wait(30) == 0
        process.communicate()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_an_inbox_on_another_filesystem_is_refused_at_the_start(running: Running) -> None:
    inbox = str(running.workspace.inbox)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", inbox], check=True, capture_output=True)
    try:
        process = running.start(wait=False)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 4
        assert "one filesystem" in error.decode()
    finally:
        subprocess.run(["umount", "-l", inbox], check=True)


def test_what_it_says_fits_the_schemas(running: Running) -> None:
    running.start("--intake-only")
    running.take("a.jsonl")
    for name in ("daemon", "deployment"):
        jsonschema.validate(read_status(running.workspace.status_file(f"{name}.json")), schema(name))


def test_an_end_when_idle_does_not_wait_for_a_trainer_that_cannot_run(running: Running) -> None:
    running.configure(profile={"name": "emoji_think"})
    running.drop("a.jsonl", "a")
    process = running.start("--exit-when-idle")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "emoji_think" in error.decode().strip().splitlines()[-1]
    assert running.queued() == ["a.jsonl"]


def test_a_broken_configuration_at_the_start_is_exit_2_with_one_line(running: Running) -> None:
    running.workspace.config_file.write_text("")
    process = running.start(wait=False)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(error.decode().strip().splitlines()) == 1
    assert "config.json" in error.decode()


def test_an_orphan_trainer_ends_with_its_daemon_and_a_new_one_follows(running: Running, wait_until: Wait) -> None:
    """The lock is held by both, so that there is one writer of checkpoints at every moment."""
    running.configure(trainer={"threads": 1})
    process = running.start()
    wait_until(lambda: _trainer(running) is not None, 60, "the first trainer")
    first = _trainer(running)
    assert first is not None
    orphan = psutil.Process(first)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    running.start()
    wait_until(lambda: _trainer(running) not in (None, first), 60, "the second trainer")
    assert not orphan.is_running() or orphan.status() == "zombie"
    wait_until(lambda: (running.workspace.run_dir("main") / "checkpoint-0").is_dir(), 60, "checkpoint-0")


def _trainer(running: Running) -> int | None:
    pid = (running.status().get("children") or {}).get("trainer", {}).get("pid")
    return pid if isinstance(pid, int) else None
