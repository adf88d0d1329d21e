"""What a resume insists on: a whole checkpoint, the world it was made in, the job's own settings, every row once."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import CheckpointError, ConfigError
from scripts.reliability.training_farm import TrainingFarm, chats, same, tick_until_step, weights_of
from trainer.worker import Did, Worker

MakeFarm = Callable[..., TrainingFarm]
LATE = {"trainer": {"checkpoint_every_steps": 100}}


def _configure(farm: TrainingFarm, **sections: dict[str, Any]) -> None:
    document = json.loads(farm.workspace.config_file.read_text())
    for section, values in sections.items():
        document[section] = {**document.get(section, {}), **values}
    farm.workspace.config_file.write_text(json.dumps(document))


def _head_file(farm: TrainingFarm, name: str) -> Path:
    return farm.head().folder / name


@pytest.mark.parametrize(
    "lost", ["optimizer.safetensors", "rng.safetensors", "state.json", "trained_rows.npy", "MANIFEST.json"]
)
def test_a_checkpoint_that_lost_a_file_gives_way_to_the_one_before_and_the_bits_come_back(
    make_farm: MakeFarm, lost: str
) -> None:
    farm = make_farm()
    farm.drop(chats(8))
    farm.train()
    whole = weights_of(farm.head())
    _head_file(farm, lost).unlink()
    worker = farm.worker()
    assert worker.run.head.step == 3  # the commit inside the job; never a fresh optimizer under these weights
    farm.train(worker)
    assert same(weights_of(farm.head()), whole)
    assert max(Counter(farm.passes()).values()) == 1


def test_a_checkpoint_of_another_major_version_of_transformers_is_refused_with_both(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.worker()
    manifest = json.loads(_head_file(farm, "MANIFEST.json").read_text())
    manifest["versions"]["transformers"] = "4.57.1"
    _head_file(farm, "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"transformers 4\.57\.1, here is 5\..*pip install 'transformers==4\.57\.1'"):
        farm.worker()


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_another_tokenizer_or_template_under_the_run_is_refused(make_farm: MakeFarm, name: str) -> None:
    farm = make_farm()
    farm.drop(chats(4))
    farm.train()
    path = farm.workspace.run_dir("main") / "checkpoint-0" / name
    path.write_text(path.read_text() + " ")
    with pytest.raises(CheckpointError, match=rf"{name.partition('.')[0]}_sha256 is .* was trained with"):
        farm.worker()


def test_another_rank_than_the_adapters_is_refused_with_both(make_farm: MakeFarm) -> None:
    farm = make_farm(trainer={"method": "lora", "lora_rank": 4})
    farm.drop(chats(4))
    farm.train()
    _configure(farm, trainer={"lora_rank": 8})
    with pytest.raises(CheckpointError, match=r"rank 4, the settings say 8.*trainer\.lora_rank=4"):
        farm.worker()


def test_a_job_resumed_under_another_configuration_is_trained_to_its_end_with_its_own(make_farm: MakeFarm) -> None:
    straight, changed = make_farm("straight", **LATE), make_farm("changed", **LATE)
    for farm in (straight, changed):
        farm.drop(chats(10))
    straight.train()
    worker = changed.worker()
    tick_until_step(worker, 2)
    changed.order("stop")
    worker.tick()
    _configure(changed, hyperparams={"batch_size": 2, "learning_rate": 0.1, "epochs": 9}, trainer={"seed": 5})
    changed.order("run")
    urgent = changed.drop(chats(2, first=70), "urgent.jsonl", lane="high")  # comes after what is active
    worker = changed.worker()
    while changed.lane("done") == []:
        worker.tick()
    worker.run.settle()
    assert urgent.job_id not in changed.lane("done")
    first_end = next(m for m in changed.catalogue.manifests() if m["step"] == straight.head().step)
    assert first_end["id"] == straight.head().id


def test_folders_and_files_that_are_called_like_checkpoints_are_none(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.drop(chats(4))
    farm.train()
    head, folder = farm.head().id, farm.workspace.run_dir("main")
    for name in ("checkpoint-300.tmp", "checkpoint-1e3", "checkpoint-٣", "checkpoint-999"):
        (folder / name).mkdir()
    (folder / "checkpoint-77").write_text("a file")
    worker = farm.worker()
    assert worker.run.head.id == head
    farm.drop(chats(4, first=20), "next.jsonl")
    farm.train(worker)
    assert farm.head().manifest["parent"] == head
    assert len(farm.lane("done")) == 2


@pytest.mark.parametrize("rows", [1, 3])
def test_a_file_of_fewer_rows_than_a_batch_takes_a_step_an_epoch_or_less_and_is_trained_whole(
    make_farm: MakeFarm, rows: int
) -> None:
    farm = make_farm()
    job = farm.drop(chats(rows))
    farm.train()
    training = farm.queue.find(job.job_id).verdict()["training"]
    assert training["rows_trained"] == rows * 2
    assert training["last_step"] >= 1
    assert training["loss_last"] > 0


def _idle(farm: TrainingFarm, worker: Worker) -> None:
    while worker.tick() is Did.WORK:
        pass


def _training(farm: TrainingFarm, worker: Worker) -> None:
    tick_until_step(worker, 2)


def _paused(farm: TrainingFarm, worker: Worker) -> None:
    tick_until_step(worker, 2)
    farm.order("pause")
    worker.tick()


def _released(farm: TrainingFarm, worker: Worker) -> None:
    tick_until_step(worker, 2)
    farm.order("pause", release_gpu=True)
    worker.tick()


ORDERS: dict[str, dict[str, Any]] = {
    "pause": {},
    "pause and release": {"release_gpu": True},
    "run": {},
    "skip": {},
    "checkpoint": {},
    "rewind": {},
    "stop": {},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("state", [_idle, _training, _paused, _released])
def test_every_order_in_every_state_is_acknowledged_and_leaves_each_row_trained_as_often_as_asked(
    make_farm: MakeFarm, state: Callable[[TrainingFarm, Worker], None], order: str
) -> None:
    farm = make_farm(**LATE)
    jobs = [farm.drop(chats(8)).job_id, farm.drop(chats(3, first=30), "second.jsonl").job_id]
    worker = farm.worker()
    state(farm, worker)
    active = farm.lane("active")
    held = state in (_paused, _released) and order != "run"
    more = {"id": farm.catalogue.manifests()[0]["id"]} if order == "rewind" else {}
    level = {"paused": True, "release_gpu": state is _released} if held else {}
    seq = farm.order(order.partition(" ")[0], **{**level, **ORDERS[order], **more})
    ended = worker.tick()
    assert farm.status()["ack"]["seq"] == seq
    assert (ended is Did.STOP) == (order == "stop")
    if order == "stop":
        worker = farm.worker()
    farm.order("run")
    farm.train(worker)
    skipped = active if order == "skip" else []
    assert sorted(farm.lane("done")) == sorted(set(jobs) - set(skipped))
    assert farm.lane("failed") == skipped
    passes = Counter((job, row) for job, row, _ in farm.passes())
    assert set(passes.values()) == {2}
    assert sum(passes.values()) == sum(2 * {jobs[0]: 8, jobs[1]: 3}[job] for job in farm.lane("done"))
