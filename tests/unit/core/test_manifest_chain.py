"""The chain outlives what happens to one folder or one file of it, and a passing fault is never taken for a loss."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core import checkpoints, manifest_chain
from core.checkpoints import Catalogue, Checkpoint
from core.errors import CheckpointError, StorageError
from core.manifest_chain import ManifestCopies
from core.paths import Workspace
from core.verification import verify
from daemon_rig import commit

Damage = Callable[[Checkpoint], None]


def _gone(checkpoint: Checkpoint) -> None:
    shutil.rmtree(checkpoint.folder)


def _emptied(checkpoint: Checkpoint) -> None:
    checkpoint.manifest_file.write_bytes(b"")  # in place: a link to it would be emptied too


def _without_manifest(checkpoint: Checkpoint) -> None:
    checkpoint.manifest_file.unlink()


def _cut(checkpoint: Checkpoint) -> None:
    checkpoint.manifest_file.write_bytes(checkpoint.manifest_file.read_bytes()[:200])


@pytest.fixture
def catalogue(workspace: Workspace) -> Catalogue:
    return Catalogue(workspace, "main")


@pytest.fixture
def chain(workspace: Workspace) -> list[Checkpoint]:
    return [commit(workspace, step) for step in (0, 5, 10, 15)]


def _copy(checkpoint: Checkpoint) -> Path:
    return checkpoint.folder.parent / "manifests" / f"{checkpoint.id}.json"


@pytest.mark.parametrize("damage", [_gone, _emptied, _without_manifest, _cut])
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_lost_folder_or_manifest_leaves_no_gap(
    catalogue: Catalogue, chain: list[Checkpoint], damage: Damage, lost: int
) -> None:
    damage(chain[lost])
    assert catalogue.manifests() == [checkpoint.manifest for checkpoint in chain]
    assert catalogue.committed() == [checkpoint for checkpoint in chain if checkpoint != chain[lost]]
    assert catalogue.trained_rows_file(chain[lost].id).read_bytes() == b"rows"


def test_a_lost_record_is_found_in_its_copy(catalogue: Catalogue, chain: list[Checkpoint]) -> None:
    (chain[1].folder / "trained_rows.npy").unlink()
    assert catalogue.trained_rows_file(chain[1].id).read_bytes() == b"rows"


def test_verify_names_a_folder_without_its_manifest_and_a_damaged_copy(
    workspace: Workspace, chain: list[Checkpoint]
) -> None:
    before = verify(workspace, "main")["problems"]
    _emptied(chain[1])
    _copy(chain[3]).write_bytes(b"")
    [broken, copy] = [problem for problem in verify(workspace, "main")["problems"] if problem not in before]
    assert broken.startswith(f"{chain[1].folder}: no MANIFEST.json")
    assert copy.startswith(f"{_copy(chain[3])}: no copy")


def test_verify_names_a_base_or_a_newest_checkpoint_whose_folder_is_gone(
    workspace: Workspace, chain: list[Checkpoint]
) -> None:
    _gone(chain[1])
    before = verify(workspace, "main")["problems"]
    _gone(chain[0])
    _gone(chain[3])
    [base, newest] = [problem for problem in verify(workspace, "main")["problems"] if problem not in before]
    assert base.startswith(f"{chain[0].id}: its folder is gone")
    assert newest.startswith(f"{chain[3].id}: its folder is gone")


@pytest.mark.parametrize("bytes_left", [0, 100])
def test_a_damaged_copy_beside_a_whole_folder_is_left_out_with_a_warning_and_made_anew(
    catalogue: Catalogue, chain: list[Checkpoint], caplog: pytest.LogCaptureFixture, bytes_left: int
) -> None:
    copy = _copy(chain[1])
    whole = copy.read_bytes()
    copy.write_bytes(whole[:bytes_left])
    with caplog.at_level(logging.WARNING):
        assert catalogue.committed() == chain
    assert str(copy) in caplog.text
    catalogue.copy_missing()
    assert copy.read_bytes() == whole


def test_a_copy_that_the_disk_refuses_to_read_is_an_error_and_no_gap(
    catalogue: Catalogue, chain: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    _gone(chain[1])

    def refuse(path: Path) -> None:
        raise StorageError("Too many open files", where=str(path))

    monkeypatch.setattr(manifest_chain, "read_json", refuse)
    with pytest.raises(StorageError):
        catalogue.cut_off()


def test_a_commit_whose_copies_the_disk_refuses_is_one_and_gets_them_later(
    workspace: Workspace, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("No space left on device")

    with monkeypatch.context() as full:
        full.setattr(ManifestCopies, "keep", refuse)
        base, head = commit(workspace, 0), commit(workspace, 5)
    assert catalogue.committed() == [base, head]
    assert catalogue.copies.manifests() == []
    catalogue.copy_missing()
    assert catalogue.copies.manifests() == [base.manifest, head.manifest]


def test_what_is_undone_leaves_no_copy_in_the_run(catalogue: Catalogue, chain: list[Checkpoint]) -> None:
    _gone(chain[2])
    catalogue.undo_after(chain[0].id)
    assert catalogue.manifests() == [chain[0].manifest]
    assert catalogue.copies.manifests() == [chain[0].manifest]


def test_an_undo_that_breaks_off_has_taken_back_whole_commits_only(
    catalogue: Catalogue, chain: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []

    def once(source: Path, target: Path) -> None:
        if moved:
            raise StorageError("No space left on device")
        moved.append(source.rename(target))

    monkeypatch.setattr(checkpoints, "rename_durable", once)
    with pytest.raises(StorageError):
        catalogue.undo_after(chain[0].id)
    assert catalogue.manifests() == [checkpoint.manifest for checkpoint in chain[:3]]
    assert catalogue.committed() == chain[:3]


def test_a_removal_keeps_a_whole_copy_of_the_record_when_the_folders_own_is_damaged(
    catalogue: Catalogue, chain: list[Checkpoint]
) -> None:
    (chain[1].folder / "trained_rows.npy").write_bytes(b"rot")
    catalogue.remove(chain[1])
    assert catalogue.trained_rows_file(chain[1].id).read_bytes() == b"rows"


def test_behind_a_gap_without_a_copy_everything_is_cut_off_and_can_be_taken_back(
    catalogue: Catalogue, chain: list[Checkpoint], workspace: Workspace
) -> None:
    _gone(chain[1])
    catalogue.copies.forget(chain[1].id)
    with pytest.raises(CheckpointError, match=f"{chain[2].id}, {chain[3].id}.*put the missing checkpoint back"):
        catalogue.manifests()
    assert [manifest["id"] for manifest in catalogue.cut_off()] == [chain[3].id, chain[2].id]
    catalogue.take_back_cut_off()
    assert catalogue.manifests() == [chain[0].manifest]
    assert sum(path.is_dir() for path in workspace.undone_dir.iterdir()) == 2
