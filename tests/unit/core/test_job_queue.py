import json
from pathlib import Path

import jsonschema
import pytest

from core.errors import DataError, NotFoundError, StorageError
from core.job_queue import Job, JobQueue, is_job_id, new_job_id, new_verdict
from core.paths import Workspace, schema_file


def make_job(workspace: Workspace, lane: str, job_id: str, name: str = "a.jsonl") -> Job:
    claim = workspace.claim_dir / job_id
    claim.mkdir()
    (claim / name).write_text('{"text": "x"}\n')
    return JobQueue(workspace).put(claim, lane)


def test_ids_grow_even_when_the_clock_stands_in_the_past() -> None:
    future = "29990101T000000000000Z-ffffff"
    following = new_job_id(future)
    assert is_job_id(following)
    assert following > future
    assert following.startswith("29990101T000000000001Z-")


def test_ids_made_in_a_row_sort_in_their_order() -> None:
    ids = [new_job_id(None)]
    for _ in range(1000):
        ids.append(new_job_id(ids[-1]))
    assert ids == sorted(ids)
    assert len(set(ids)) == 1001


def test_the_trainer_takes_high_before_normal_before_low_and_the_oldest_first(workspace: Workspace) -> None:
    ids = [f"20260101T00000000000{n}Z-abcdef" for n in range(4)]
    for lane, job_id in zip(("low", "normal", "high", "normal"), ids, strict=True):
        make_job(workspace, lane, job_id)
    queue = JobQueue(workspace)
    taken = []
    while job := queue.claim():
        taken.append(job.job_id)
        queue.move(job, "done")
    assert taken == [ids[2], ids[1], ids[3], ids[0]]
    assert queue.claim() is None


def test_everything_of_a_job_moves_with_it(workspace: Workspace) -> None:
    job = make_job(workspace, "normal", new_job_id(None), "train.jsonl")
    (job.folder / "train.jsonl.meta.json").write_text("{}")
    job.write_verdict(new_verdict(job_id=job.job_id, state="queued"))
    (job.folder / "train.jsonl.rejected.jsonl").write_text("")
    (job.folder / "tokens").mkdir()
    moved = JobQueue(workspace).move(job, "done")
    assert not job.folder.exists()
    assert moved.data_file.name == "train.jsonl"
    assert moved.sidecar_file.read_text() == "{}"
    assert moved.verdict()["state"] == "queued"


def test_two_files_of_one_name_never_meet(workspace: Workspace) -> None:
    first = make_job(workspace, "normal", new_job_id(None), "train.jsonl")
    second = make_job(workspace, "normal", new_job_id(first.job_id), "train.jsonl")
    queue = JobQueue(workspace)
    assert [job.job_id for job in queue.jobs("normal")] == [first.job_id, second.job_id]
    with pytest.raises(StorageError):
        queue.put(first.folder, "normal")


def test_a_folder_with_two_data_files_is_refused_by_name(workspace: Workspace) -> None:
    job = make_job(workspace, "normal", new_job_id(None))
    (job.folder / "b.jsonl").write_text("")
    with pytest.raises(DataError, match="expected one data file, found 2"):
        _ = job.data_file


@pytest.mark.parametrize("wanted", ["", "..", "../done", "20260101T000000000000Z-abcdef", "x" * 300])
def test_an_unknown_job_is_not_found_and_builds_no_path(workspace: Workspace, wanted: str) -> None:
    with pytest.raises(NotFoundError, match="dropforge jobs"):
        JobQueue(workspace).find(wanted)


def test_strangers_in_a_lane_are_no_jobs(workspace: Workspace) -> None:
    (workspace.lane("normal") / "README.md").write_text("")
    (workspace.lane("normal") / ".claim").mkdir()
    queue = JobQueue(workspace)
    assert queue.jobs("normal") == []
    assert queue.count("normal") == 0


def test_the_last_id_counts_claims_and_refusals_too(workspace: Workspace) -> None:
    (workspace.rejected_dir / "20300101T000000000000Z-abcdef").mkdir()
    make_job(workspace, "done", "20260101T000000000000Z-abcdef")
    assert JobQueue(workspace).last_id() == "20300101T000000000000Z-abcdef"


def test_a_fresh_verdict_fits_its_schema_and_an_unknown_key_is_refused(tmp_path: Path) -> None:
    schema = json.loads(schema_file("verdict").read_text())
    verdict = new_verdict(job_id=new_job_id(None), file="a.jsonl", state="queued")
    jsonschema.validate(verdict, schema)
    with pytest.raises(TypeError, match="sttate"):
        new_verdict(sttate="queued")
    verdict["tokens"]["total"] = 5
    assert new_verdict()["tokens"]["total"] == 0
