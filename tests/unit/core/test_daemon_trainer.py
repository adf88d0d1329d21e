"""Keeping a trainer alive: whose fault a death is, what stands still, hangs, and the retention of what it makes."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from core.atomic import read_json
from core.daemon.catalogue_view import CatalogueView
from core.daemon.children import Children
from core.daemon.loop import name_unbuilt
from core.daemon.orders import OrderBook
from core.daemon.supervisor import State, Supervisor
from core.daemon.trainer_keeper import TrainerKeeper
from core.daemon.training_view import TrainingView
from core.job_queue import Job, new_verdict
from core.paths import Workspace
from core.status import write_status
from daemon_rig import FakeSpawn, commit, ended, make_context

JOB = "20260101T000000000000Z-abcdef"


class Rig:
    def __init__(self, workspace: Workspace, clock: Any, **config: Any) -> None:
        self.workspace, self.clock = workspace, clock
        self.context = make_context(workspace, **config)
        self.kills = 0
        self.spawn = FakeSpawn()
        self.children = Children(workspace, ("inbox.settle_s=0",), Supervisor(start=self.spawn))
        self.training = TrainingView(workspace)
        self.orders = OrderBook(workspace, self.training)
        self.view = CatalogueView(workspace, "main")
        self.keeper = TrainerKeeper(
            self.context,
            self.children,
            self.orders,
            self.training,
            self.view,
            lock_fd=None,
            count_kills=lambda: self.kills,
        )

    def tick(self, seconds: float = 0.1, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(seconds)
            self.view.refresh()
            for exit_ in self.children.supervisor.tick(self.clock()):
                self.keeper.on_exit(exit_)
            self.keeper.tick(self.clock())
            self.orders.tick()

    def activate(self, **verdict: Any) -> Job:
        folder = self.workspace.lane("active") / JOB
        folder.mkdir()
        (folder / "a.jsonl").write_text("row\n")
        job = Job(JOB, "active", folder)
        job.write_verdict(new_verdict(job_id=JOB, file="a.jsonl", state="active", **verdict))
        return job

    def die(self, code: int, later_s: float = 40.0) -> None:
        self.spawn.processes[-1].code = code
        self.tick()
        self.tick(later_s)

    def trainers(self) -> int:
        return len(self.spawn.processes)

    def state(self) -> State:
        return self.children["trainer"].state


@pytest.fixture
def rig(workspace: Workspace, clock: object) -> Iterator[Rig]:
    made = Rig(workspace, clock)
    yield made
    made.context.wakeup.close()


def test_the_trainer_is_started_with_the_overrides_and_a_fresh_order(rig: Rig) -> None:
    rig.tick()
    spec = rig.spawn.processes[0].spec
    assert spec.argv[1:] == ("-m", "trainer", "--root", str(rig.workspace.root))
    assert spec.env["DROPFORGE_INBOX__SETTLE_S"] == "0"
    assert json.loads(rig.workspace.status_file("orders.json").read_text())["command"] == "run"


def test_a_trainer_that_dies_twice_by_itself_on_a_job_fails_the_job_and_takes_its_commits_back(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.tick()
    rig.activate()
    rig.die(-signal.SIGSEGV)
    assert rig.context.queue.active() is not None
    rig.die(-signal.SIGSEGV)
    [job] = rig.context.queue.jobs("failed")
    verdict = job.verdict()
    assert (verdict["state"], verdict["code"]) == ("failed", "crashed")
    assert "SIGSEGV" in verdict["message"]
    assert rig.view.catalogue.head().id == base.id  # type: ignore[union-attr]
    assert rig.state() is not State.FATAL


def test_the_commits_of_a_failed_job_are_undone(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.tick()
    rig.activate()
    commit(rig.workspace, 5, [ended(JOB) | {"rows_trained": 5}])
    rig.die(1)
    rig.die(1)
    assert rig.view.catalogue.head().id == base.id  # type: ignore[union-attr]
    assert list(rig.workspace.undone_dir.iterdir())


def test_a_commit_between_two_deaths_clears_the_job(rig: Rig) -> None:
    commit(rig.workspace, 0)
    rig.tick()
    rig.activate()
    for step in (5, 10, 15):
        rig.die(1)
        commit(rig.workspace, step, [ended(JOB) | {"rows_trained": step}])
    assert rig.context.queue.active() is not None


def test_a_kill_from_outside_is_nobodys_fault_however_often(rig: Rig) -> None:
    rig.tick()
    rig.activate()
    for _ in range(10):
        rig.die(-signal.SIGKILL)
    assert rig.context.queue.active() is not None
    assert rig.trainers() == 11


def test_a_kill_for_want_of_memory_is_the_jobs(rig: Rig) -> None:
    rig.tick()
    rig.activate()
    rig.kills += 1
    rig.die(-signal.SIGKILL)
    assert read_json(rig.workspace.status_file("orders.json"))["careful"] is True
    rig.kills += 1
    rig.die(-signal.SIGKILL)
    assert rig.context.queue.jobs("failed")[0].verdict()["code"] == "out_of_memory"


def test_a_trainer_killed_from_outside_is_followed_by_one_that_need_not_be_careful(rig: Rig) -> None:
    rig.tick()
    rig.activate()
    rig.die(-signal.SIGKILL)
    assert "careful" not in read_json(rig.workspace.status_file("orders.json"))


def test_without_a_job_repeated_failures_are_fatal_until_the_configuration_changes(rig: Rig) -> None:
    rig.tick()
    for _ in range(5):
        rig.die(1)
    assert rig.state() is State.FATAL
    assert "trainer" in rig.context.blocks.training
    before = rig.trainers()
    rig.tick(100.0, times=3)
    assert rig.trainers() == before
    rig.keeper.config_changed()
    rig.tick(times=2)
    assert rig.trainers() == before + 1
    assert rig.context.blocks.training == {}


def test_a_refused_configuration_is_not_tried_again_until_it_changes(rig: Rig) -> None:
    rig.tick()
    rig.workspace.logs_dir.mkdir(exist_ok=True)
    (rig.workspace.logs_dir / "trainer.out").write_text("locked.base_model says A, the run began with B\n")
    rig.die(2)
    rig.tick(100.0, times=3)
    assert rig.trainers() == 1
    assert "the run began with B" in rig.context.blocks.training["trainer"]
    rig.keeper.config_changed()
    rig.tick(times=2)
    assert rig.trainers() == 2


def test_a_full_disk_is_waited_for_and_blames_nobody(rig: Rig) -> None:
    rig.tick()
    rig.activate()
    for _ in range(8):
        rig.die(4, later_s=0.1)
        assert "disk" in rig.context.blocks.training["trainer"]
        rig.tick(60.0)
    assert rig.context.queue.active() is not None
    assert rig.state() in (State.STARTING, State.RUNNING)


def test_a_trainer_whose_status_stands_still_is_dumped_killed_and_retried_once(rig: Rig) -> None:
    rig.tick()
    rig.activate()
    write_status(rig.workspace.status_file("training_status.json"), {"current_step": 3, "heartbeat": "x"})
    for round_ in range(2):
        rig.tick(times=3)
        rig.tick(601.0)
        process = rig.spawn.processes[-1]
        assert process.signals == [signal.SIGABRT]
        rig.tick(6.0)
        assert process.signals == [signal.SIGABRT, signal.SIGKILL]
        rig.die(-signal.SIGKILL)
        assert (rig.context.queue.active() is None) == (round_ == 1)
    assert rig.context.queue.jobs("failed")[0].verdict()["code"] == "hung"


def test_a_paused_or_idle_trainer_is_never_taken_for_hung(rig: Rig) -> None:
    rig.tick()
    rig.tick(5000.0, times=3)
    rig.activate()
    rig.orders.by_hand(True)
    rig.tick(5000.0, times=3)
    assert rig.spawn.processes[-1].signals == []


def test_a_stop_goes_out_as_an_order_and_no_new_trainer_follows(rig: Rig) -> None:
    rig.tick()
    write_status(rig.workspace.status_file("training_status.json"), {"ack": {"seq": 1}})
    rig.keeper.ask_stop(rig.clock())
    rig.tick()
    assert json.loads(rig.workspace.status_file("orders.json").read_text())["command"] == "stop"
    assert rig.spawn.processes[-1].signals == []
    rig.die(0)
    assert rig.trainers() == 1
    assert rig.keeper.at_rest


@pytest.mark.parametrize(
    ("config", "named"),
    [({"profile": {"name": "emoji_think"}}, "emoji_think"), ({"auto_generate": {"enabled": True}}, "auto_generate")],
)
def test_what_is_not_built_blocks_the_trainer_and_is_named(
    workspace: Workspace, clock: object, config: dict[str, Any], named: str
) -> None:
    rig = Rig(workspace, clock, **config)
    name_unbuilt(rig.context)
    rig.tick(times=3)
    assert rig.trainers() == 0
    assert named in rig.context.blocks.training["config"]
    rig.context.wakeup.close()
