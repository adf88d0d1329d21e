"""The next job is trained while the last commit of the one before is written, and nothing is promised before it is."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.errors import StorageError
from core.job_queue import Job
from scripts.reliability.training_farm import TrainingFarm, chats, same, weights_in, weights_of
from trainer.worker import Did, Worker

MakeFarm = Callable[..., TrainingFarm]
FIRST_STEPS = 4  # of a file of eight rows, two epochs, four rows a step


class Disk:
    """Lets no commit through until told to."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.fails = False

    def put_before(self, worker: Worker) -> None:
        real = worker.run.catalogue.commit

        def commit(*arguments: Any) -> Any:
            self.open.wait(60)
            if self.fails:
                raise StorageError("No space left on device", where="checkpoints")
            return real(*arguments)

        worker.run.catalogue.commit = commit  # type: ignore[method-assign,assignment]  # of this one object


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.open.set()  # no thread may wait for ever


def _two_files(farm: TrainingFarm, **more: Any) -> tuple[Job, Job]:
    return farm.drop(chats(8)), farm.drop(chats(9, first=30), "second.jsonl", **more)


def _until_second_is_begun(farm: TrainingFarm, disk: Disk, steps: int = 2) -> Worker:
    """A worker whose first job waits for the disk and whose second has taken some steps."""
    worker = farm.worker()
    disk.put_before(worker)
    for _ in range(FIRST_STEPS + steps):
        assert worker.tick() is Did.WORK
    return worker


def _calm(make_farm: MakeFarm) -> TrainingFarm:
    """The same two files with every last commit waited for."""
    farm = make_farm("calm", trainer={"checkpoint_every_steps": 100})
    farm.drop(chats(8))
    farm.train()
    farm.drop(chats(9, first=30), "second.jsonl")
    farm.train()
    return farm


@pytest.fixture
def farm(make_farm: MakeFarm) -> TrainingFarm:
    return make_farm("overlapping", trainer={"checkpoint_every_steps": 100})


def test_the_next_job_takes_steps_before_the_last_commit_is_written_and_ends_in_the_same_bits(
    make_farm: MakeFarm, farm: TrainingFarm, disk: Disk
) -> None:
    first, second = _two_files(farm)
    worker = _until_second_is_begun(farm, disk)
    assert worker.run.state.step == FIRST_STEPS + 2
    assert (farm.lane("active"), farm.lane("normal"), farm.lane("done")) == ([first.job_id], [second.job_id], [])
    assert farm.status()["current_file"] == "second.jsonl"
    disk.open.set()
    farm.train(worker)
    assert farm.lane("done") == [first.job_id, second.job_id]
    assert same(weights_of(farm.head()), weights_of(_calm(make_farm).head()))
    training = farm.queue.find(first.job_id).verdict()["training"]
    assert (training["first_step"], training["last_step"], training["rows_trained"]) == (1, FIRST_STEPS, 16)


def test_a_last_commit_that_fails_leaves_both_jobs_where_a_restart_trains_them_in_their_order(
    make_farm: MakeFarm, farm: TrainingFarm, disk: Disk
) -> None:
    first, second = _two_files(farm, lane="high")
    first, second = second, first  # the second one dropped has the right of way, and the larger id
    worker = _until_second_is_begun(farm, disk)
    disk.fails = True
    disk.open.set()
    with pytest.raises(StorageError, match="No space left"):
        farm.train(worker)
    assert (farm.lane("active"), farm.lane("normal"), farm.head().step) == ([first.job_id], [second.job_id], 0)
    farm.train()
    order = [job for job, _, _ in farm.passes()]
    assert order == [first.job_id] * 18 + [second.job_id] * 16
    assert farm.lane("done") == sorted([first.job_id, second.job_id])


def test_poison_in_the_next_job_rolls_back_to_the_commit_that_was_still_being_written(
    farm: TrainingFarm, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _two_files(farm)
    worker = _until_second_is_begun(farm, disk)
    real = worker.run.engine_ready().loss
    monkeypatch.setattr(worker.run.engine_ready(), "loss", lambda batch, **how: real(batch, **how) * float("nan"))
    disk.open.set()
    farm.train(worker)
    assert (farm.lane("done"), farm.lane("failed")) == ([first.job_id], [second.job_id])
    assert farm.queue.find(second.job_id).verdict()["code"] == "non_finite_loss"
    assert farm.head().manifest["jobs"][-1]["job_id"] == first.job_id
    assert {job for job, _, _ in farm.passes()} == {first.job_id}
    assert same(weights_in(worker.run), weights_in(farm.worker().run))


def test_a_job_cancelled_in_its_lane_after_it_was_begun_leaves_no_trace_in_the_weights(
    farm: TrainingFarm, disk: Disk
) -> None:
    first, second = _two_files(farm)
    worker = _until_second_is_begun(farm, disk)
    farm.queue.move(farm.queue.find(second.job_id), "failed")
    farm.order("checkpoint")  # must not commit what was begun of it
    disk.open.set()
    farm.train(worker)
    assert (farm.lane("done"), farm.lane("active"), farm.lane("failed")) == ([first.job_id], [], [second.job_id])
    assert worker.run.state.step == farm.head().step == farm.status()["ack"]["step"] == FIRST_STEPS
    assert same(weights_in(worker.run), weights_in(farm.worker().run))


def test_stop_waits_for_the_last_commit_and_commits_what_was_begun_as_active(farm: TrainingFarm, disk: Disk) -> None:
    first, second = _two_files(farm)
    worker = _until_second_is_begun(farm, disk)
    farm.order("stop")
    disk.open.set()
    assert worker.tick() is Did.STOP
    assert (farm.lane("done"), farm.lane("active")) == ([first.job_id], [second.job_id])
    assert farm.head().step == FIRST_STEPS + 2
    assert farm.queue.find(second.job_id).settings_file.is_file()
    farm.order("run")
    farm.train()
    assert farm.lane("done") == [first.job_id, second.job_id]


@pytest.mark.parametrize("order", ["pause", "checkpoint", "skip", "rewind"])
def test_orders_given_before_the_last_commit_is_written_find_the_jobs_in_their_places(
    make_farm: MakeFarm, farm: TrainingFarm, disk: Disk, order: str
) -> None:
    first, second = _two_files(farm)
    worker = _until_second_is_begun(farm, disk)
    base = farm.head().id
    more: dict[str, dict[str, Any]] = {"skip": {"job_id": first.job_id}, "rewind": {"id": base}}
    farm.order(order, **more.get(order, {"release_gpu": order == "pause"}))
    disk.open.set()
    worker.tick()
    if order == "pause":  # the model is out of memory: what was begun is in a commit
        assert (farm.lane("active"), farm.head().step) == ([second.job_id], FIRST_STEPS + 2)
        farm.order("run")
    elif order == "checkpoint":
        assert farm.status()["ack"]["checkpoint"] == farm.head().id
    elif order == "rewind":
        assert farm.lane("active") + farm.lane("normal") == [first.job_id, second.job_id]  # the first begins again
        assert farm.head().id == base
    farm.train(worker)
    assert farm.lane("done") == [first.job_id, second.job_id]  # skip came too late for the first: all its rows are in
    assert same(weights_of(farm.head()), weights_of(_calm(make_farm).head()))


def test_a_job_found_active_at_the_start_is_committed_before_the_next_one_is_touched(
    farm: TrainingFarm, disk: Disk
) -> None:
    first, _ = _two_files(farm)
    farm.queue.claim()
    worker = farm.worker()
    disk.put_before(worker)
    disk.open.set()
    while worker.run.state.step == 0 or farm.lane("done") != [first.job_id]:
        assert worker.run.state.step <= FIRST_STEPS
        worker.tick()
    assert worker.run.state.step == FIRST_STEPS


def test_a_job_that_replays_earlier_rows_waits_for_the_manifest_that_names_them(
    make_farm: MakeFarm, disk: Disk
) -> None:
    farm = make_farm("replaying", trainer={"checkpoint_every_steps": 100, "replay_ratio": 0.5})
    first, second = _two_files(farm)
    disk.open.set()
    farm.train()
    replayed = [job for job, _, epoch in farm.passes() if epoch == 0xFFFF]
    assert set(replayed) == {first.job_id}
    assert farm.lane("done") == [first.job_id, second.job_id]
