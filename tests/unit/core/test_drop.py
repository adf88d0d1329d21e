"""The drop helper: what stands in the inbox under a final name is complete."""

import hashlib
import json
from pathlib import Path

import pytest

from core.drop import drop, sidecar_beside
from core.errors import StorageError, UsageError
from core.paths import Workspace

ROW = '{"text": "a row"}\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.v2.jsonl"
    path.write_text(ROW)
    return path


def test_a_dropped_file_lies_beside_a_sidecar_that_holds_its_hash(workspace: Workspace, source: Path) -> None:
    dropped = drop(workspace, source, sidecar={"spec": "completion_v1"})
    assert dropped.path == workspace.inbox / "rows.v2.jsonl"
    assert dropped.path.read_text() == ROW
    sidecar = json.loads((workspace.inbox / "rows.v2.jsonl.meta.json").read_text())
    assert sidecar == {"spec": "completion_v1", "sha256": hashlib.sha256(ROW.encode()).hexdigest()}
    assert source.exists(), "it copies, it never moves"


def test_the_priority_is_the_folder(workspace: Workspace, source: Path) -> None:
    assert drop(workspace, source, priority="high").path.parent == workspace.inbox / "high"


def test_a_second_file_of_the_same_name_replaces_nothing(workspace: Workspace, source: Path) -> None:
    first = drop(workspace, source).path
    source.write_text('{"text": "another"}\n')
    second = drop(workspace, source).path
    assert first.read_text() == ROW
    assert second != first
    assert second.name.startswith("rows-")
    assert second.name.endswith(".v2.jsonl")


def test_a_failed_drop_leaves_nothing_visible(workspace: Workspace, source: Path) -> None:
    (workspace.inbox / "low").rmdir()
    (workspace.inbox / "low").write_text("in the way")
    with pytest.raises(StorageError):
        drop(workspace, source, priority="low")
    with pytest.raises(UsageError):
        drop(workspace, source.with_name("absent.jsonl"))
    assert [p.name for p in workspace.inbox.iterdir() if p.is_file()] == ["low"]


def test_a_broken_sidecar_beside_the_source_is_refused_by_name(source: Path) -> None:
    assert sidecar_beside(source) == {}
    beside = source.with_name(source.name + ".meta.json")
    beside.write_text("[]")
    with pytest.raises(UsageError, match="not a JSON object"):
        sidecar_beside(source)
