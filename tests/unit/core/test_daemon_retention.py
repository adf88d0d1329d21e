"""Which checkpoints stay: by the chain, never by number or date."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from core.daemon.catalogue_view import CatalogueView
from core.daemon.snapshot_service import SnapshotService, pins_file, to_remove
from core.paths import Workspace
from daemon_rig import commit, ended, make_context

JOB = "20260101T000000000000Z-abcdef"


class Served:
    serving: str | None = None
    previous: str | None = None


class Rig:
    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.context = make_context(workspace, checkpoints={"keep": 2})
        self.view = CatalogueView(workspace, "main")
        self.served = Served()
        self.in_use: set[str] = set()
        self.now_s = 0.0
        self.service = SnapshotService(self.context, self.view, self.served, lambda: self.in_use)  # type: ignore[arg-type]
        self.chain = [commit(workspace, step, [ended(JOB)] if step else []) for step in (0, 30, 20, 10, 40, 5)]

    def tick(self) -> list[int]:
        for _ in range(10):
            self.now_s += 3.0
            self.view.refresh()
            self.service.tick(self.now_s)
        return [checkpoint.step for checkpoint in self.view.committed]


@pytest.fixture
def rig(workspace: Workspace) -> Iterator[Rig]:
    made = Rig(workspace)
    yield made
    made.context.wakeup.close()


def test_the_newest_by_the_chain_and_the_base_stay_whatever_number_and_date_say(rig: Rig) -> None:
    for age, checkpoint in enumerate(rig.chain):
        os.utime(checkpoint.folder, (1_000_000 - age, 1_000_000 - age))
    assert rig.tick() == [0, 40, 5]


def test_serving_previous_best_pinned_and_those_in_judgement_stay(rig: Rig) -> None:
    by_step: dict[int, Any] = {checkpoint.step: checkpoint.id for checkpoint in rig.chain}
    rig.served.serving, rig.served.previous = by_step[30], by_step[20]
    rig.in_use = {by_step[10]}
    assert rig.tick() == [0, 30, 20, 10, 40, 5]
    rig.in_use = set()
    board = {"candidates": [{"id": by_step[10], "suites": {"x": {"metric": "loss", "value": 1.0}}},
                            {"id": by_step[30], "suites": {"x": {"metric": "loss", "value": 2.0}}}]}  # fmt: skip
    rig.workspace.status_file("leaderboard.json").write_text(json.dumps(board))
    assert rig.tick() == [0, 30, 20, 10, 40, 5]
    rig.workspace.status_file("leaderboard.json").unlink()
    pins_file(rig.workspace, "main").write_text(json.dumps({"pinned": [by_step[20]]}))
    rig.served.previous = None
    assert rig.tick() == [0, 30, 20, 40, 5]


def test_the_manifests_and_the_records_of_removed_ones_stay(rig: Rig) -> None:
    rig.tick()
    assert [manifest["step"] for manifest in rig.view.catalogue.manifests()] == [0, 30, 20, 10, 40, 5]
    assert rig.view.catalogue.trained_rows_file(rig.chain[1].id).read_bytes() == b"rows"


def test_a_removal_that_a_crash_interrupted_is_finished_and_what_is_aside_thinned(rig: Rig) -> None:
    trash = rig.workspace.run_dir("main") / ".trash-30-abc"
    trash.mkdir()
    (trash / "model.safetensors").write_bytes(b"x")
    for number in range(6):
        (rig.workspace.incomplete_dir / f"main-{number}").mkdir()
    rig.service.start_clean()
    assert not trash.exists()
    assert len(list(rig.workspace.incomplete_dir.iterdir())) == 3


def test_fewer_than_two_are_never_kept(rig: Rig) -> None:
    rig.view.refresh()
    assert [checkpoint.step for checkpoint in to_remove(rig.view.committed, 0, set())] == [30, 20, 10]
