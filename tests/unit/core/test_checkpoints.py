import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from core.checkpoints import Catalogue, Checkpoint
from core.errors import CheckpointError, NotFoundError, StorageError
from core.paths import Workspace, schema_file

ZERO = "0" * 64


def commit(catalogue: Catalogue, step: int, parent: Checkpoint | None, **fields: Any) -> Checkpoint:
    staged = catalogue.stage(step)
    (staged / "model.safetensors").write_bytes(f"weights {step}".encode())
    (staged / "config.json").write_text("{}")
    (staged / "optimizer.safetensors").write_bytes(b"moments")
    np.save(staged / "trained_rows.npy", np.arange(step))
    base = {"name": "tiny", "sha256": parent.manifest["base"]["sha256"] if parent else None}
    known: dict[str, Any] = {
        "step": step,
        "parent": parent.id if parent else None,
        "base": base,
        "tokenizer_sha256": ZERO,
        "chat_template_sha256": None,
        "profile": None,
        "config_sha256": ZERO,
        "versions": {},
        "jobs": [],
        "train_loss": None,
    }
    return catalogue.commit(staged, known | fields)


@pytest.fixture
def catalogue(workspace: Workspace) -> Catalogue:
    return Catalogue(workspace, "main")


def test_the_id_is_computed_as_the_contract_words_it(catalogue: Catalogue) -> None:
    base = commit(catalogue, 0, None)
    weights = hashlib.sha256(b"weights 0").hexdigest()
    base_sum = hashlib.sha256(f"model.safetensors {weights}\n".encode()).hexdigest()
    assert base.id == f"0-{base_sum[:12]}"
    assert base.manifest["base"]["sha256"] == base_sum
    child = commit(catalogue, 5, base)
    weights = hashlib.sha256(b"weights 5").hexdigest()
    child_sum = hashlib.sha256(f"model.safetensors {weights}\nbase {base_sum}\n".encode()).hexdigest()
    assert child.id == f"5-{child_sum[:12]}"


def test_a_manifest_fits_its_schema_and_keeps_what_travels_apart(catalogue: Catalogue) -> None:
    manifest = commit(catalogue, 0, None).manifest
    jsonschema.validate(manifest, json.loads(schema_file("manifest").read_text()))
    assert set(manifest["files"]) == {"model.safetensors", "config.json"}
    assert set(manifest["training_files"]) == {"optimizer.safetensors", "trained_rows.npy"}


def test_head_is_the_end_of_the_chain_whatever_numbers_and_times_say(
    catalogue: Catalogue, workspace: Workspace
) -> None:
    base = commit(catalogue, 0, None)
    high = commit(catalogue, 900, base)
    low = commit(catalogue, 20, high)
    for name in ("checkpoint-1000.tmp", "checkpoint-1e3", "checkpoint-٣", "checkpoint-2000"):
        (workspace.run_dir("main") / name).mkdir()
    (workspace.run_dir("main") / "checkpoint-3000").write_text("a file")
    assert catalogue.head() == low
    assert [c.id for c in catalogue.committed()] == [base.id, high.id, low.id]


def test_a_folder_without_a_manifest_is_set_aside_and_never_counted(catalogue: Catalogue, workspace: Workspace) -> None:
    base = commit(catalogue, 0, None)
    broken = workspace.run_dir("main") / "checkpoint-7"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    [moved] = catalogue.set_aside_broken()
    assert moved.parent == workspace.incomplete_dir
    assert (moved / "model.safetensors").read_bytes() == b"half"
    assert catalogue.committed() == [base]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_every_damaged_byte_is_found(catalogue: Catalogue, name: str, damage: str) -> None:
    checkpoint = commit(catalogue, 0, None)
    assert catalogue.verify(checkpoint, training=True) == []
    path = checkpoint.folder / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if damage == "flip" else data[:-1])
    [problem] = catalogue.verify(checkpoint, training=True)
    assert name in problem
    assert (catalogue.verify(checkpoint, training=False) == []) == (name == "optimizer.safetensors")


def test_a_manifest_edited_to_match_swapped_weights_is_found_by_its_id(catalogue: Catalogue) -> None:
    checkpoint = commit(catalogue, 0, None)
    manifest = json.loads(checkpoint.manifest_file.read_text())
    (checkpoint.folder / "model.safetensors").write_bytes(b"other")
    other = {"bytes": 5, "sha256": hashlib.sha256(b"other").hexdigest()}
    manifest["files"]["model.safetensors"] = other
    checkpoint.manifest_file.write_text(json.dumps(manifest))
    [problem] = catalogue.verify(catalogue.committed()[0], training=False)
    assert "id is not that of its weights" in problem


def test_undo_takes_later_commits_back_newest_first_and_keeps_their_bytes(
    catalogue: Catalogue, workspace: Workspace
) -> None:
    chain = [commit(catalogue, 0, None)]
    for step in (5, 10, 15):
        chain.append(commit(catalogue, step, chain[-1]))
    catalogue.remove(chain[2])
    assert catalogue.undo_after(chain[1].id) == [chain[2].id, chain[3].id]
    assert catalogue.head() == chain[1]
    assert len(catalogue.manifests()) == 2
    undone = sorted(path.name for path in workspace.undone_dir.iterdir())
    assert len(undone) == 3  # one folder, and manifest plus record of the removed one
    again = commit(catalogue, 10, chain[1])
    assert catalogue.head() == again


def test_a_removed_checkpoint_leaves_its_manifest_and_its_record(catalogue: Catalogue) -> None:
    base = commit(catalogue, 0, None)
    middle = commit(catalogue, 5, base)
    head = commit(catalogue, 10, middle)
    catalogue.remove(middle)
    assert not middle.folder.exists()
    assert [m["id"] for m in catalogue.chain(head.id)] == [base.id, middle.id, head.id]
    assert np.load(catalogue.trained_rows_file(middle.id)).tolist() == [0, 1, 2, 3, 4]
    assert catalogue.committed() == [base, head]


def test_a_step_is_committed_once(catalogue: Catalogue) -> None:
    base = commit(catalogue, 0, None)
    with pytest.raises(StorageError, match="exists"):
        commit(catalogue, 0, None)
    assert catalogue.committed() == [base]


def test_a_gap_in_the_chain_is_said(catalogue: Catalogue, tmp_path: Path) -> None:
    base = commit(catalogue, 0, None)
    middle = commit(catalogue, 5, base)
    head = commit(catalogue, 10, middle)
    middle.folder.rename(tmp_path / "gone")
    catalogue.copies.forget(middle.id)
    with pytest.raises(CheckpointError, match=head.id):
        catalogue.head()


def test_a_checkpoint_is_found_by_id_step_name_or_unambiguous_start(catalogue: Catalogue) -> None:
    base = commit(catalogue, 0, None)
    child = commit(catalogue, 10, base)
    for wanted in (child.id, "10", "checkpoint-10", child.id[:6]):
        assert catalogue.get(wanted) == child
    for wanted in ("", "../main", "11", "nothing"):
        with pytest.raises(NotFoundError):
            catalogue.get(wanted)


def test_asking_for_removed_weights_says_so_and_names_the_nearest_kept(catalogue: Catalogue) -> None:
    chain = [commit(catalogue, 0, None)]
    for step in (40, 50, 500):
        chain.append(commit(catalogue, step, chain[-1]))
    catalogue.remove(chain[2])
    for wanted in (chain[2].id, "50", chain[2].id[:6]):
        with pytest.raises(NotFoundError, match="weights were removed") as refused:
            catalogue.get(wanted)
        assert chain[1].id in refused.value.fix
        assert "dropforge pin" in refused.value.fix
    with pytest.raises(NotFoundError, match="no checkpoint"):
        catalogue.get("51")


def test_only_a_commit_that_covers_the_last_row_ends_a_job(catalogue: Catalogue) -> None:
    job = {"rows_train": 10, "epochs": 2}
    base = commit(catalogue, 0, None)
    half = commit(catalogue, 1, base, jobs=[job | {"rows_trained": 19}])
    whole = commit(catalogue, 2, half, jobs=[job | {"rows_trained": 20}])
    assert [c.ends_job for c in (base, half, whole)] == [False, False, True]
