"""The daemon as one object: what idle means, what a signal does, and that one broken part stops nobody else."""

import argparse
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from core.daemon import __main__ as entry
from core.daemon.loop import Daemon
from core.daemon.supervisor import Supervisor
from core.paths import HELD_CONFIG_VARIABLE, Workspace
from core.status import write_status
from daemon_rig import FakeSpawn, InlineWorker, commit, ended, make_context


class Rig:
    """A complete daemon; its trainer, judge, server and worker are fakes."""

    def __init__(self, workspace: Workspace, clock: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.workspace, self.clock = workspace, clock
        self.spawn = FakeSpawn()
        self.context = make_context(workspace, inbox={"settle_s": 0}, **options.pop("config", {}))
        monkeypatch.setattr(entry, "BackgroundWorker", lambda _wake: InlineWorker())
        monkeypatch.setattr(entry, "Supervisor", lambda: Supervisor(start=self.spawn))
        known = argparse.Namespace(intake_only=False, server_grace_s=0.0)
        self.parts, _, self.poller = entry.build(self.context, known, None)
        self.server: tuple[dict[str, Any] | None, str | None] = (None, "refused")
        self.poller.take = lambda: self.server  # type: ignore[method-assign]
        self.daemon = Daemon(self.parts, **options)

    def tick(self, seconds: float = 0.1, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(seconds)
            self.parts.intake.wake()
            self.daemon.tick(self.clock())

    def says(self) -> dict[str, Any]:
        self.tick(1.1)
        return json.loads(self.workspace.status_file("daemon.json").read_text())

    def obey(self) -> None:
        seq = json.loads(self.workspace.status_file("orders.json").read_text())["seq"]
        doc = {"current_step": 3, "ack": {"seq": seq, "step": 3, "checkpoint": None}}
        write_status(self.workspace.status_file("training_status.json"), doc)
        self.tick(times=2)

    def close(self) -> None:
        self.daemon.close()
        self.context.wakeup.close()


@pytest.fixture
def rig(workspace: Workspace, clock: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(workspace, clock, monkeypatch, exit_when_idle=True)
    yield made
    made.close()


def test_the_states_follow_what_happens(rig: Rig) -> None:
    assert rig.says()["state"] == "starting"
    commit(rig.workspace, 0)
    (rig.workspace.inbox / "a.jsonl").write_text("row\n")
    assert rig.says()["state"] == "idle"
    assert rig.says()["queue"]["normal"] == 1
    rig.context.queue.claim()
    said = rig.says()
    assert (said["state"], said["current_job"]) == ("training", rig.context.queue.jobs("active")[0].job_id)
    (rig.workspace.control_dir / "pause").touch()
    assert (rig.says()["state"], rig.says()["reason"]) == ("paused", None)
    (rig.workspace.control_dir / "pause").write_text('{"reason": "lunch"}')
    assert (rig.says()["state"], rig.says()["reason"]) == ("paused", "lunch")
    rig.context.blocks.training["config"] = "profile 'x' is not built yet"
    assert rig.says()["state"] == "blocked"
    assert rig.says()["reason"] == "profile 'x' is not built yet"


def test_a_daemon_ends_when_idle_only_after_everything_rests(rig: Rig) -> None:
    rig.tick(times=3)
    assert not rig.daemon.ended
    commit(rig.workspace, 0)
    path = rig.workspace.inbox / "a.jsonl"
    path.write_text("row\n")
    rig.tick(times=4)
    rig.obey()
    job = rig.context.queue.claim()
    assert job is not None
    rig.tick(5.0, times=3)
    assert not rig.daemon.idle(rig.clock()), "a job is active"
    rig.context.queue.move(job, "done")
    rig.tick(0.6, times=4)
    assert rig.spawn.last("trainer").signals == [], "the stop is an order first"
    assert json.loads(rig.workspace.status_file("orders.json").read_text())["command"] == "stop"
    rig.spawn.last("trainer").code = 0
    rig.tick(times=2)
    assert not rig.daemon.ended and rig.spawn.last("audits").signals == [signal.SIGTERM]
    rig.spawn.last("audits").code = -signal.SIGTERM
    rig.tick(times=2)
    assert rig.daemon.ended


def test_a_broken_part_does_not_stop_the_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(rig.parts.view, "refresh", broken)
    monkeypatch.setattr(rig.parts.control, "tick", broken)
    (rig.workspace.inbox / "a.jsonl").write_text("row\n")
    rig.tick(times=4)
    assert [job.data_file.name for job in rig.context.queue.jobs("normal")] == ["a.jsonl"]


def test_the_first_signal_stops_in_order_and_the_second_at_once(rig: Rig) -> None:
    rig.tick(times=2)
    trainer = rig.spawn.last("trainer")
    rig.parts.signals.note(signal.SIGTERM)
    rig.tick()
    assert rig.says()["state"] == "stopping"
    assert trainer.signals == []
    rig.parts.signals.note(signal.SIGINT)
    rig.tick()
    assert signal.SIGKILL in trainer.signals
    assert rig.daemon.ended


def test_a_trainer_that_does_not_commit_in_time_is_killed(rig: Rig) -> None:
    rig.tick(times=2)
    rig.parts.signals.note(signal.SIGTERM)
    rig.tick(times=2)
    rig.tick(121.0)
    assert rig.spawn.last("trainer").signals == [signal.SIGKILL]


def test_sigusr1_asks_for_a_commit_and_sighup_for_the_configuration(rig: Rig) -> None:
    rig.tick(times=2)
    rig.obey()
    rig.parts.signals.note(signal.SIGUSR1)
    rig.tick(times=2)
    assert json.loads(rig.workspace.status_file("orders.json").read_text())["command"] == "checkpoint"
    rig.workspace.config_file.write_text('{"inbox": {"allow_duplicates": true}}')
    rig.parts.signals.note(signal.SIGHUP)
    rig.tick()
    assert rig.context.settings.inbox.allow_duplicates


def test_config_json_put_back_as_it_was_frees_trainer_and_judge(rig: Rig) -> None:
    commit(rig.workspace, 0)
    commit(rig.workspace, 10, [ended("20260101T000000000001Z-abcdef")])
    (rig.workspace.inbox / "a.jsonl").write_text("row\n")
    rig.tick(times=3)
    good = rig.workspace.config_file.read_text()
    rig.workspace.config_file.write_text(good[:5])
    rig.tick(1.1)
    rig.spawn.last("trainer").code = rig.spawn.last("judge").code = 2
    rig.tick(times=2)
    assert rig.says()["state"] == "blocked"
    assert (rig.spawn.names().count("trainer"), rig.spawn.names().count("judge")) == (1, 1)
    rig.workspace.config_file.write_text(good)
    rig.tick(1.1, times=2)
    assert rig.says()["state"] == "idle"
    assert (rig.spawn.names().count("trainer"), rig.spawn.names().count("judge")) == (2, 2)


def test_whatever_the_daemon_starts_is_told_to_load_what_the_daemon_holds(rig: Rig) -> None:
    (rig.workspace.inbox / "a.jsonl").write_text("row\n")
    rig.server = ({"serving": None, "previous": None, "checkpoints": []}, None)
    commit(rig.workspace, 0)
    rig.tick(1.1, times=4)
    assert set(rig.spawn.names()) == {"trainer", "publisher", "audits"}
    told = {process.spec.env.get(HELD_CONFIG_VARIABLE) for process in rig.spawn.processes}
    assert told == {str(rig.workspace.held_config_file)}


def test_nothing_is_claimed_while_stopping(rig: Rig) -> None:
    rig.tick()
    rig.parts.signals.note(signal.SIGTERM)
    rig.tick()
    path = rig.workspace.inbox / "a.jsonl"
    path.write_text("row\n")
    rig.tick(times=5)
    assert path.exists()


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"f_bavail": 10, "f_files": 0, "f_favail": 0}, "disk full: need 16.8 MB, have 0.0 MB"),
        ({"f_bavail": 10**6, "f_files": 10**6, "f_favail": 50}, "disk full: need 200 free inodes, have 50"),
    ],
)
def test_a_full_disk_pauses_the_trainer_and_a_free_one_lets_it_go_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, left: dict[str, int], said: str
) -> None:
    rig.tick(times=2)
    rig.obey()
    real = os.statvfs(rig.workspace.root)
    full = type("Full", (), {"f_frsize": 4096, **left})
    monkeypatch.setattr("core.daemon.disk_guard.os.statvfs", lambda _path: full)
    rig.tick(1.1, times=2)
    assert json.loads(rig.workspace.status_file("orders.json").read_text())["paused"] is True
    assert rig.says()["reason"].startswith(said)
    monkeypatch.setattr("core.daemon.disk_guard.os.statvfs", lambda _path: real)
    rig.tick(1.1, times=2)
    rig.obey()
    assert json.loads(rig.workspace.status_file("orders.json").read_text())["paused"] is False


def test_a_cancelled_job_is_failed_and_a_retried_one_waits_again(rig: Rig) -> None:
    commit(rig.workspace, 0)
    (rig.workspace.inbox / "a.jsonl").write_text("row\n")
    rig.tick(times=4)
    [job] = rig.context.queue.jobs("normal")
    (rig.workspace.control_dir / "cancel-1.json").write_text(json.dumps({"id": job.job_id}))
    rig.tick(times=2)
    [failed] = rig.context.queue.jobs("failed")
    assert (failed.job_id, failed.verdict()["code"], failed.verdict()["state"]) == (job.job_id, "cancelled", "failed")
    (rig.workspace.control_dir / "retry-1.json").write_text(json.dumps({"id": job.job_id}))
    rig.tick(times=4)
    [again] = rig.context.queue.jobs("normal")
    assert (again.job_id, again.verdict()["state"], again.verdict()["code"]) == (job.job_id, "queued", "ok")


def test_a_pin_a_rewind_and_a_suite_are_carried_out(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.tick(times=3)
    rig.obey()
    control = rig.workspace.control_dir
    (control / "pin-1.json").write_text('{"id": "checkpoint-0"}')
    rig.tick()
    assert json.loads((rig.workspace.run_dir("main") / "pins.json").read_text()) == {"pinned": [base.id]}
    (control / "pin-2.json").write_text('{"id": "checkpoint-0", "off": true}')
    rig.tick()
    assert json.loads((rig.workspace.run_dir("main") / "pins.json").read_text()) == {"pinned": []}
    (control / "rewind-1.json").write_text('{"id": "0"}')
    rig.tick(times=2)
    order = json.loads(rig.workspace.status_file("orders.json").read_text())
    assert (order["command"], order["id"]) == ("rewind", base.id)
    incoming = rig.workspace.own_suites_dir / ".incoming-mine"
    incoming.mkdir(parents=True)
    (incoming / "suite.json").write_text('{"name": "mine", "metric": "exact_match"}')
    (incoming / "items.jsonl").write_text('{"prompt": "2+2", "expected": "4"}\n{"text": "without an id, as well"}\n')
    (control / "suite-1.json").write_text('{"id": "mine"}')
    rig.tick()
    assert (rig.workspace.own_suites_dir / "mine" / "items.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "items", "said"),
    [
        ("../evil", "", "no suite name"),
        ("mine", "", "no items"),
        ("mine", '{"id": "1"}\n', "neither messages nor prompt"),
        ("mine", '{"id": "1", "prompt": "a"}\n{"id": "1", "prompt": "b"}\n', "repeats the id"),
        ("mine", "not json\n", "items.jsonl:1"),
    ],
)
def test_a_suite_the_judge_could_not_read_is_refused_with_the_reason(
    rig: Rig, name: str, items: str, said: str
) -> None:
    incoming = rig.workspace.own_suites_dir / ".incoming-mine"
    incoming.mkdir(parents=True)
    (incoming / "suite.json").write_text('{"name": "mine", "metric": "exact_match"}')
    (incoming / "items.jsonl").write_text(items)
    (rig.workspace.control_dir / "suite-1.json").write_text(json.dumps({"id": name}))
    rig.tick()
    assert said in json.loads(rig.workspace.status_file("control.json").read_text())["error"]
    assert not (rig.workspace.own_suites_dir / "mine").exists()
