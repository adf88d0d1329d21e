"""A daemon that starts with another `run`: what was let in for the one before goes through the gates of this one."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from core.daemon.__main__ import _prepare
from core.job_queue import Job
from core.paths import Workspace, schema_file
from daemon_rig import IntakeRig, make_context


@pytest.fixture
def rig(workspace: Workspace, clock: object) -> Iterator[IntakeRig]:
    made = IntakeRig(workspace, clock)
    yield made
    made.context.wakeup.close()


def start_with(rig: IntakeRig, run: str) -> None:
    rig.context.wakeup.close()
    rig.context = make_context(rig.workspace, run=run, inbox={"settle_s": 2, "sidecar_wait_s": 10})
    _prepare(rig.context)
    rig.restart()


def let_in(rig: IntakeRig, name: str, folder: str = "") -> Job:
    rig.drop(name, f"held {name}\n", folder)
    rig.settle()
    return rig.context.queue.jobs(folder or "normal")[-1]


def verdict_file(folder: Path) -> Path:
    return folder / "verdict.json"


def test_a_waiting_file_is_checked_again_and_its_rows_are_held_out_in_the_new_run(rig: IntakeRig) -> None:
    before = [let_in(rig, "a.jsonl"), let_in(rig, "b.jsonl", "high")]
    start_with(rig, "second")
    assert rig.waiting() == []
    rig.settle()
    assert (rig.lane("high"), rig.lane("normal")) == (["b.jsonl"], ["a.jsonl"])
    assert [job.job_id for lane in ("normal", "high") for job in rig.context.queue.jobs(lane)] == [
        job.job_id for job in before
    ]
    for job in rig.context.queue.waiting():
        verdict = job.verdict()
        jsonschema.validate(verdict, json.loads(schema_file("verdict").read_text()))
        assert verdict["run"] == "second"
        held_out = rig.workspace.incoming_dir("second") / f"{job.job_id}.jsonl"
        assert held_out.read_text() == job.data_file.read_text()


def test_a_half_trained_file_waits_again_without_its_copy_of_the_old_settings(rig: IntakeRig) -> None:
    job = rig.context.queue.move(let_in(rig, "a.jsonl"), "active")
    job.settings_file.write_text('{"run": "main"}')
    start_with(rig, "second")
    rig.settle()
    assert rig.context.queue.active() is None
    [waiting] = rig.context.queue.jobs("normal")
    assert waiting.job_id == job.job_id
    assert not waiting.settings_file.exists()


def test_in_the_same_run_nothing_is_checked_again(rig: IntakeRig) -> None:
    job = rig.context.queue.move(let_in(rig, "a.jsonl"), "active")
    let_in(rig, "b.jsonl")
    start_with(rig, "main")
    assert (rig.lane("active"), rig.lane("normal")) == (["a.jsonl"], ["b.jsonl"])
    assert len(rig.worker.calls) == 2
    assert job.folder.is_dir()


def test_what_has_ended_stays_where_it_is(rig: IntakeRig) -> None:
    for lane in ("done", "failed", "held"):
        job = let_in(rig, f"{lane}.jsonl")
        job.write_verdict(job.verdict() | {"state": lane})
        rig.context.queue.move(job, lane)
    start_with(rig, "second")
    assert [rig.lane(lane) for lane in ("done", "failed", "held")] == [["done.jsonl"], ["failed.jsonl"], ["held.jsonl"]]


def test_a_start_that_was_cut_short_between_verdict_and_move_is_finished_by_the_next(rig: IntakeRig) -> None:
    job = let_in(rig, "a.jsonl")
    verdict_file(job.folder).unlink()
    start_with(rig, "second")
    rig.settle()
    assert rig.context.queue.jobs("normal")[0].verdict()["run"] == "second"


def test_a_claim_that_was_about_to_be_let_in_for_the_old_run_is_checked_for_the_new_one(rig: IntakeRig) -> None:
    job = let_in(rig, "a.jsonl")
    job.folder.rename(rig.workspace.claim_dir / job.job_id)
    start_with(rig, "second")
    rig.settle()
    assert rig.context.queue.jobs("normal")[0].verdict()["run"] == "second"


def test_a_folder_with_two_data_files_is_left_for_a_person_and_stops_no_start(rig: IntakeRig) -> None:
    job = let_in(rig, "a.jsonl")
    (job.folder / "extra.jsonl").write_text("1\n")
    start_with(rig, "second")
    assert job.folder.is_dir()
