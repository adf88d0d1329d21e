"""What a run has lost while no trainer looked costs no row: bridged by a copy, or trained again to the same bits."""

import json
import shutil
from collections import Counter
from collections.abc import Callable

import pytest

from core.checkpoints import Checkpoint
from core.errors import CheckpointError
from scripts.reliability.training_farm import TrainingFarm, chats, same, weights_of

MakeFarm = Callable[..., TrainingFarm]
Damage = Callable[[Checkpoint], None]
OFTEN = {"trainer": {"checkpoint_every_steps": 2}}  # two commits in each job


def _gone(checkpoint: Checkpoint) -> None:
    shutil.rmtree(checkpoint.folder)


def _hollow(checkpoint: Checkpoint) -> None:
    _gone(checkpoint)
    checkpoint.folder.mkdir()


def _emptied(checkpoint: Checkpoint) -> None:
    checkpoint.manifest_file.write_bytes(b"")


def _foreign(checkpoint: Checkpoint) -> None:
    """A manifest that is not of these weights."""
    text = checkpoint.manifest_file.read_text()
    checkpoint.manifest_file.write_text(text.replace(checkpoint.id, f"{checkpoint.step}-{'0' * 12}"))


def _trained(farm: TrainingFarm) -> TrainingFarm:
    farm.drop(chats(8))
    farm.drop(chats(6, first=20), "second.jsonl")
    farm.train()
    return farm


def _as_before_there_were_copies(farm: TrainingFarm) -> None:
    shutil.rmtree(farm.workspace.manifests_dir("main"))


def _each_pass_once(farm: TrainingFarm) -> bool:
    passes = Counter(farm.passes())
    return set(passes.values()) == {1} and len(passes) == 2 * (8 + 6)


@pytest.mark.parametrize("damage", [_gone, _hollow, _emptied, _foreign])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_checkpoint_under_the_newest_costs_its_weights_and_nothing_else(
    make_farm: MakeFarm, damage: Damage, lost: int
) -> None:
    farm = _trained(make_farm(**OFTEN))
    chain, ids = farm.catalogue.committed(), [m["id"] for m in farm.catalogue.manifests()]
    damage(chain[lost])
    worker = farm.worker()
    assert worker.run.head == chain[-1]
    assert [m["id"] for m in farm.catalogue.manifests()] == ids
    assert len(farm.lane("done")) == 2
    assert _each_pass_once(farm)
    farm.drop(chats(4, first=50), "third.jsonl")
    farm.train(worker)
    assert len(farm.lane("done")) == 3


@pytest.mark.parametrize("damage", [_gone, _hollow, _emptied])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_without_a_copy_what_was_trained_since_is_trained_again_to_the_same_bits(
    make_farm: MakeFarm, damage: Damage, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    farm = _trained(make_farm(**OFTEN))
    chain, whole = farm.catalogue.committed(), weights_of(farm.head())
    _as_before_there_were_copies(farm)
    damage(chain[lost])
    worker = farm.worker()
    assert worker.run.head == chain[lost - 1]
    assert chain[lost].id in caplog.text and "trained again" in caplog.text
    farm.train(worker)
    assert farm.head().id == chain[-1].id
    assert same(weights_of(farm.head()), whole)
    assert len(farm.lane("done")) == 2
    assert _each_pass_once(farm)


def test_a_damaged_copy_of_a_removed_checkpoint_has_what_followed_trained_again_to_the_same_bits(
    make_farm: MakeFarm,
) -> None:
    farm = _trained(make_farm(**OFTEN))
    chain, whole = farm.catalogue.committed(), weights_of(farm.head())
    farm.catalogue.remove(chain[2])
    (farm.workspace.manifests_dir("main") / f"{chain[2].id}.json").write_bytes(b"")
    farm.train()
    assert same(weights_of(farm.head()), whole)
    assert [checkpoint.id for checkpoint in farm.catalogue.committed()] == [checkpoint.id for checkpoint in chain]
    assert _each_pass_once(farm)


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("damage", [_gone, _emptied])
def test_a_lost_base_is_imported_again(make_farm: MakeFarm, damage: Damage, copies: bool) -> None:
    farm = _trained(make_farm(**OFTEN))
    chain = farm.catalogue.committed()
    if not copies:
        _as_before_there_were_copies(farm)
    damage(chain[0])
    assert farm.worker().run.head == chain[-1]
    assert [checkpoint.id for checkpoint in farm.catalogue.committed()] == [checkpoint.id for checkpoint in chain]
    assert farm.catalogue.verify(farm.catalogue.committed()[0], training=True) == []
    assert len(farm.lane("done")) == 2


def test_a_lost_base_that_model_path_does_not_give_is_refused_and_nothing_is_taken_back(make_farm: MakeFarm) -> None:
    farm = _trained(make_farm(**OFTEN))
    chain = farm.catalogue.committed()
    _gone(chain[0])
    shutil.rmtree(farm.workspace.root / "models")
    document = json.loads(farm.workspace.config_file.read_text())
    document["trainer"]["seed"] = 99  # the embedded model is made from it
    farm.workspace.config_file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=f"checkpoint-0 is gone.*not {chain[0].id}.*from a backup"):
        farm.worker()
    assert farm.catalogue.committed() == chain[1:]


def test_the_newest_checkpoint_when_it_is_gone_is_trained_again_to_the_same_bits(make_farm: MakeFarm) -> None:
    farm = _trained(make_farm(**OFTEN))
    head, whole = farm.head(), weights_of(farm.head())
    _gone(head)
    farm.train()
    assert farm.head().id == head.id
    assert same(weights_of(farm.head()), whole)
    assert _each_pass_once(farm)


def test_a_run_made_before_there_were_copies_gets_them(make_farm: MakeFarm) -> None:
    farm = _trained(make_farm(**OFTEN))
    before = {path.name: path.read_bytes() for path in farm.workspace.manifests_dir("main").iterdir()}
    _as_before_there_were_copies(farm)
    farm.worker()
    assert {path.name: path.read_bytes() for path in farm.workspace.manifests_dir("main").iterdir()} == before
    assert len(before) == 2 * len(farm.catalogue.manifests())


def test_going_back_to_a_checkpoint_that_lost_its_folder_goes_back_further_and_trains_the_rest_again(
    make_farm: MakeFarm,
) -> None:
    farm = make_farm(**OFTEN)
    first, second = farm.drop(chats(8)), farm.drop(chats(6, first=20), "second.jsonl")
    worker = farm.worker()
    while second.job_id not in farm.lane("active") or worker.run.settle().manifest["jobs"][0]["job_id"] == first.job_id:
        worker.tick()
    ends_first = next(c for c in farm.catalogue.committed() if c.ends_job)
    _gone(ends_first)
    farm.order("skip", job_id=second.job_id)
    farm.train(worker)
    assert (farm.lane("failed"), farm.lane("done")) == ([second.job_id], [first.job_id])
    assert Counter(farm.passes()) == {(first.job_id, row, epoch): 1 for row in range(8) for epoch in range(2)}
    assert farm.head().id == ends_first.id
