"""status, jobs, logs, checkpoints, leaderboard, lineage: what a working root answers, to people and to programs."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from core.cli import main
from core.job_queue import new_job_id
from core.paths import Workspace
from sample_root import SampleRoot, stamp, working_day

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def sample(workspace: Workspace) -> SampleRoot:
    return working_day(workspace)


def ask(capsys: Capture, sample: SampleRoot, *argv: str, code: int = 0) -> dict[str, Any]:
    """Run a command with --json and return its one document."""
    assert main([*argv, "--json", "--root", str(sample.ws.root)]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def read(capsys: Capture, sample: SampleRoot, *argv: str, code: int = 0) -> str:
    """Run a command as a person does and return what it prints."""
    assert main([*argv, "--root", str(sample.ws.root)]) == code
    return capsys.readouterr().out


def test_status_holds_the_three_documents(sample: SampleRoot, capsys: Capture) -> None:
    doc = ask(capsys, sample, "status")
    assert set(doc) == {"daemon", "training", "deployment"}
    assert doc["daemon"]["state"] == "training"
    assert doc["deployment"]["serving"] == sample.catalogue.committed()[-1].id


def test_status_for_a_person_names_file_step_reason_and_what_is_served(sample: SampleRoot, capsys: Capture) -> None:
    shown = read(capsys, sample, "status")
    assert "judging" not in shown
    sample.status("daemon", ask(capsys, sample, "status")["daemon"] | {"judging": "612-aaaa"})
    assert "judging   612-aaaa\n" in read(capsys, sample, "status")
    for part in ("dialogues-0412.jsonl", "step 612 of 879", "notes.txt", sample.catalogue.committed()[-1].id):
        assert part in shown


def test_checkpoints_name_the_one_that_serves_and_those_pinned(sample: SampleRoot, capsys: Capture) -> None:
    kept = sample.catalogue.committed()[1].id
    (sample.ws.run_dir("main") / "pins.json").write_text(json.dumps({"pinned": [kept]}))
    ends = [line.split()[-1] for line in read(capsys, sample, "checkpoints").splitlines()]
    assert ends[2:] == ["pinned", "serving"]
    assert read(capsys, sample, "checkpoints", kept).splitlines()[-2].split() == ["kept", "as", "pinned"]


def test_status_names_a_file_that_waits_for_its_sidecar_and_since_when(sample: SampleRoot, capsys: Capture) -> None:
    waiting = {"file": "q.csv", "job_id": "x", "for": "its sidecar q.csv.meta.json", "since": "2026-01-02T03:04:05.0Z"}
    sample.status("daemon", ask(capsys, sample, "status")["daemon"] | {"inbox": {"waiting": [waiting]}})
    assert "waits    q.csv: for its sidecar q.csv.meta.json, since 2026-01-02T03:04:05\n" in read(
        capsys, sample, "status"
    )


def test_status_counts_refused_files_and_says_what_came_of_requests(sample: SampleRoot, capsys: Capture) -> None:
    plain = {"seen_at": stamp(50), "effective_at": stamp(49), "id": None, "error": None, "note": None}
    refused = {"error": "job x is done (fix: retry takes failed and held jobs)"}
    recent = [plain | {"command": "promote", "id": f"{n}-aaaa", "error": f"no checkpoint {n}"} for n in (7, 8)]
    recent += [plain | {"command": "skip", "note": "no job was active"}, plain | {"command": "checkpoint", "step": 12}]
    recent += [plain | {"command": "retry", "id": "x", "seen_at": "2026-01-02T03:04:05.0Z"} | refused]
    sample.status("control", {**recent[-1], "recent": recent})
    shown = read(capsys, sample, "status")
    assert "rejected 2" in shown
    told = [line.removeprefix("asked    ") for line in shown.splitlines() if line.startswith("asked")]
    assert [line.split(" ", 1)[1] for line in told[:2]] == [
        "skip: no job was active",
        "checkpoint: done at step 12",
    ]
    assert told[2] == "2026-01-02T03:04:05 retry x: job x is done (fix: retry takes failed and held jobs)"


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        ({"status": "idle", "current_step": 315, "total_steps": 327}, "idle, step 315"),
        ({"current_file": "a.jsonl", "current_step": 327, "total_steps": 315}, "training, a.jsonl, step 327"),
        ({"current_file": "a.jsonl", "current_step": 3, "total_steps": 9}, "training, a.jsonl, step 3 of 9, 0 s left"),
        (
            {"current_file": "a.jsonl", "current_step": 303, "total_steps": 309, "job_step": 3, "job_steps": 9},
            "training, a.jsonl, step 3 of 9 (step 303 of the run), 0 s left",
        ),
    ],
)
def test_status_shows_no_numbers_of_a_job_that_is_not_trained(
    sample: SampleRoot, capsys: Capture, known: dict[str, Any], shown: str
) -> None:
    sample.training(**known, eta_s=0.0)
    [line] = [line for line in read(capsys, sample, "status").splitlines() if line.startswith("training")]
    assert line.removeprefix("training").strip() == shown


def test_status_of_a_dead_daemon_does_not_say_that_it_trains(sample: SampleRoot, capsys: Capture) -> None:
    sample.daemon("training", heartbeat=stamp(600))
    assert "no heartbeat for 600 s" in read(capsys, sample, "status")


def test_status_of_a_daemon_that_was_killed_a_moment_ago_does_not_say_that_it_runs(
    sample: SampleRoot, capsys: Capture
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    sample.daemon("training", pid=ended.pid, children={"trainer": {"state": "RUNNING", "pid": 7}})
    shown = read(capsys, sample, "status")
    assert f"not running: pid {ended.pid} ended while training" in shown
    assert "RUNNING" not in shown and "s left" not in shown and " at http" not in shown


def test_status_shows_nothing_that_a_dead_trainer_said_as_if_it_trained(sample: SampleRoot, capsys: Capture) -> None:
    told = json.loads(sample.ws.status_file("training_status.json").read_text())
    sample.status("training_status", told | {"pid": os.getpid() + 1})
    assert "training  starting\n" in read(capsys, sample, "status")
    sample.status("training_status", told | {"pid": os.getpid()})
    assert "training  training, dialogues-0412.jsonl, step 612 of 879, loss 1.371" in read(capsys, sample, "status")
    sample.daemon("stopped", children={"trainer": {"state": "STOPPING", "pid": os.getpid()}})
    shown = read(capsys, sample, "status")
    assert "training  ended with it, dialogues-0412.jsonl, step 612 of 879\n" in shown
    assert "STOPPING" not in shown


def test_status_of_a_root_never_started_says_how_to_start(workspace: Workspace, capsys: Capture) -> None:
    assert main(["status", "--root", str(workspace.root)]) == 0
    assert "dropforge up" in capsys.readouterr().out


def test_status_that_may_not_look_says_so_and_not_that_nothing_runs(
    workspace: Workspace, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", folder)

    monkeypatch.setattr("os.listdir", refuse)
    assert main(["status", "--root", str(workspace.root)]) == 4
    assert f"{workspace.status_dir}: Permission denied" in capsys.readouterr().err


def test_status_without_a_daemon_counts_what_lies_in_the_inbox(workspace: Workspace, capsys: Capture) -> None:
    for name in ("a.jsonl", "a.jsonl.meta.json", ".hidden.jsonl", "README.md", "high/b.jsonl"):
        (workspace.inbox / name).write_text("{}")
    (workspace.inbox / "notes.txt.part").write_text("{}")
    (workspace.inbox / "link.jsonl").symlink_to(workspace.inbox / "a.jsonl")
    assert main(["status", "--root", str(workspace.root)]) == 0
    shown = capsys.readouterr().out
    assert "inbox     2 files wait for a daemon (dropforge up)\n" in shown
    assert "ignored  link.jsonl: a symbolic link, not a regular file\n" in shown
    assert "ignored  notes.txt.part: a partial download by its name (*.part)\n" in shown


def test_jobs_lists_every_lane_and_the_refused_files_oldest_first(sample: SampleRoot, capsys: Capture) -> None:
    jobs = ask(capsys, sample, "jobs")["jobs"]
    states = [job["state"] for job in jobs]
    assert sorted(states) == sorted(["done", "done", "rejected", "rejected", "failed", "active", "queued", "queued"])
    assert [job["job_id"] for job in jobs] == sorted(job["job_id"] for job in jobs)


def test_the_lane_beats_the_state_that_a_waiting_verdict_still_says(sample: SampleRoot, capsys: Capture) -> None:
    verdict = sample.job("active", state="queued")
    (found,) = ask(capsys, sample, "jobs", verdict["job_id"])["jobs"]
    assert found["state"] == "active"


def test_a_job_without_a_readable_verdict_is_shown_not_raised(sample: SampleRoot, capsys: Capture) -> None:
    verdict = sample.job("failed")
    (sample.ws.lane("failed") / verdict["job_id"] / "verdict.json").write_text("{")
    (found,) = ask(capsys, sample, "jobs", verdict["job_id"])["jobs"]
    assert (found["state"], found["code"]) == ("failed", "unreadable")
    assert "no readable verdict" in found["message"]


def test_a_file_that_is_being_checked_is_listed_by_its_name_and_not_as_good(
    sample: SampleRoot, capsys: Capture
) -> None:
    folder = sample.ws.claim_dir / new_job_id(None)
    folder.mkdir(parents=True)
    (folder / "a\nb.jsonl").write_text("{}")
    (found,) = ask(capsys, sample, "jobs", folder.name)["jobs"]
    assert (found["file"], found["state"], found["code"]) == ("a\\x0ab.jsonl", "queued", "checking")
    assert found["message"] == "it is being checked, or waits for that"


def test_status_says_that_an_edit_of_the_configuration_was_not_taken(sample: SampleRoot, capsys: Capture) -> None:
    file = sample.ws.status_file("daemon.json")
    doc = json.loads(file.read_text())
    file.write_text(json.dumps(doc | {"config_error": "config.json:1:2: not valid JSON"}))
    assert main(["status", "--root", str(sample.ws.root)]) == 0
    shown = capsys.readouterr().out
    assert "config   not taken, the last good one holds: config.json:1:2: not valid JSON" in shown
    file.write_text(json.dumps(doc | {"config_error": None}))
    assert main(["status", "--root", str(sample.ws.root)]) == 0
    assert "config" not in capsys.readouterr().out


def test_speed_and_time_left_are_written_as_people_write_numbers(sample: SampleRoot, capsys: Capture) -> None:
    told = {"status": "training", "current_file": "a.jsonl", "current_step": 5, "total_steps": 9, "loss": 3.361492}
    file = sample.ws.status_file("training_status.json")
    file.write_text(json.dumps(told | {"tokens_per_sec": 10061.7, "eta_s": 12.9}))
    assert main(["status", "--root", str(sample.ws.root)]) == 0
    assert "training, a.jsonl, step 5 of 9, loss 3.361, 10,062 tokens/s, 13 s left" in capsys.readouterr().out


def test_an_unknown_job_is_a_usage_error(sample: SampleRoot, capsys: Capture) -> None:
    assert ask(capsys, sample, "jobs", "20260101T000000000000Z-abcdef", code=2)["error"]["error"] == "not_found"


def test_a_job_answers_to_its_files_name_and_to_a_part_of_its_id(sample: SampleRoot, capsys: Capture) -> None:
    verdict = sample.job("failed", "odd name.jsonl")
    for wanted in ("odd name.jsonl", verdict["job_id"].rpartition("-")[2], verdict["job_id"]):
        (found,) = ask(capsys, sample, "jobs", wanted)["jobs"]
        assert found == verdict
    shown = sample.job("failed", "\\xff.jsonl")  # verdicts name files as they are shown
    assert ask(capsys, sample, "jobs", os.fsdecode(b"\xff.jsonl"))["jobs"] == [shown]
    again = sample.job("normal", "odd name.jsonl")
    found_both = ask(capsys, sample, "jobs", "odd name.jsonl")["jobs"]
    assert [job["job_id"] for job in found_both] == [verdict["job_id"], again["job_id"]]
    error = ask(capsys, sample, "retry", "odd name.jsonl", code=2)["error"]
    assert again["job_id"] in error["fix"]
    assert "jobs answer to" in ask(capsys, sample, "jobs", verdict["job_id"][:6], code=2)["error"]["message"]


def test_a_job_for_a_person_says_what_is_wrong_and_how_to_mend_it(sample: SampleRoot, capsys: Capture) -> None:
    job_id = next(j["job_id"] for j in ask(capsys, sample, "jobs")["jobs"] if j["code"] == "bad_json")
    shown = read(capsys, sample, "jobs", job_id)
    assert "line 17, column 42" in shown
    assert "fix: mend line 17 of broken.jsonl" in shown


def test_a_hostile_file_name_stays_one_harmless_line(sample: SampleRoot, capsys: Capture) -> None:
    sample.job("done", "a\x1b[31m\nb\u202e.jsonl")
    shown = read(capsys, sample, "jobs")
    assert "\\x1b[31m\\x0ab\\u202e.jsonl" in shown
    assert "\x1b[31m\n" not in shown


def test_checkpoints_are_the_manifests_in_chain_order(sample: SampleRoot, capsys: Capture) -> None:
    manifests = ask(capsys, sample, "checkpoints")["checkpoints"]
    assert [m["step"] for m in manifests] == [0, 60, 560]
    (one,) = ask(capsys, sample, "checkpoints", manifests[1]["id"][:8])["checkpoints"]
    assert one == manifests[1]


def test_checkpoints_for_a_person_names_the_base_and_the_files(sample: SampleRoot, capsys: Capture) -> None:
    shown = read(capsys, sample, "checkpoints")
    assert "the base, dropforge-tiny" in shown
    assert "leftshift-train.jsonl" in shown
    assert "1905 of 1905 row passes" in read(capsys, sample, "checkpoints", "560")


def test_leaderboard_is_the_judges_document(sample: SampleRoot, capsys: Capture) -> None:
    doc = ask(capsys, sample, "leaderboard")
    assert [c["decision"] for c in doc["candidates"]] == ["keep", "promote"]
    assert "94 of 100 against 0 of 100" in read(capsys, sample, "leaderboard")


def test_leaderboard_for_a_person_shows_intervals_parts_the_best_ever_and_the_drop_since(
    sample: SampleRoot, capsys: Capture
) -> None:
    path = sample.ws.status_file("leaderboard.json")
    doc = json.loads(path.read_text())
    easy = {"metric": "accuracy", "n": 25, "of": 100, "value": 0.4, "ci95": [0.21, 0.61]}
    doc["candidates"][-1]["suites"] = {"easy": easy, "a_rather_long_name_for_a_suite": easy}
    doc["candidates"][-1]["reason"] = "better on every suite there is, " * 9 + "and so promoted"
    best = {"metric": "accuracy", "n": 25, "id": "3-aaaaaaaaaaaa", "value": 0.6}
    doc["best"] = {"easy": best | {"drop_since": 0.2}, "hard": best | {"drop_since": 0.0}, "old": best}
    path.write_text(json.dumps(doc))
    shown = read(capsys, sample, "leaderboard")
    assert "  easy                            accuracy 0.4 [0.21, 0.61] (n 25 of 100)\n" in shown
    assert "and so promoted" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "best ever on easy: accuracy 0.6 (n 25) by 3-aaaaaaaaaaaa; what serves is worse by 0.2" in shown
    assert "best ever on hard: accuracy 0.6 (n 25) by 3-aaaaaaaaaaaa; what serves is as good" in shown
    assert "what serves was not asked the same items" in shown


def test_lineage_of_a_checkpoint_lists_exactly_the_files_it_saw(sample: SampleRoot, capsys: Capture) -> None:
    base, kept, best = sample.catalogue.committed()
    doc = ask(capsys, sample, "lineage", best.id)
    assert [f["file"] for f in doc["files"]] == ["greetings.jsonl", "leftshift-train.jsonl"]
    assert set(doc["files"][0]) == {"job_id", "file", "sha256", "generator", "rows_trained"}
    assert (doc["checkpoint"], doc["served"]) == (best.id, best.id)
    assert doc["checkpoints"] == [base.id, kept.id, best.id]
    assert [f["file"] for f in ask(capsys, sample, "lineage", "checkpoint-60")["files"]] == ["greetings.jsonl"]
    assert ask(capsys, sample, "lineage", base.id)["files"] == []


def test_lineage_of_a_file_lists_the_checkpoints_that_saw_it(sample: SampleRoot, capsys: Capture) -> None:
    _base, kept, best = sample.catalogue.committed()
    sha256 = kept.manifest["jobs"][0]["sha256"]
    doc = ask(capsys, sample, "lineage", sha256)
    assert (doc["file"], doc["checkpoints"], doc["served"]) == (sha256, [kept.id, best.id], best.id)
    assert ask(capsys, sample, "lineage", kept.manifest["jobs"][0]["job_id"])["file"] == sha256


def test_lineage_of_a_file_takes_the_name_it_was_dropped_under(sample: SampleRoot, capsys: Capture) -> None:
    doc = ask(capsys, sample, "lineage", "greetings.jsonl")
    assert [file["file"] for file in doc["files"]] == ["greetings.jsonl"]
    assert doc["checkpoints"] == [c.id for c in sample.catalogue.committed()[1:]]


def test_lineage_survives_the_removal_of_a_checkpoint(sample: SampleRoot, capsys: Capture) -> None:
    _base, kept, best = sample.catalogue.committed()
    sample.catalogue.remove(kept)
    assert len(ask(capsys, sample, "lineage", best.id)["files"]) == 2
    assert ask(capsys, sample, "lineage", kept.id)["checkpoint"] == kept.id


def test_lineage_of_a_refused_file_says_that_no_checkpoint_saw_it(sample: SampleRoot, capsys: Capture) -> None:
    refused = next(j for j in ask(capsys, sample, "jobs")["jobs"] if j["state"] == "rejected")
    doc = ask(capsys, sample, "lineage", refused["sha256"])
    assert (doc["checkpoints"], doc["served"]) == ([], None)
    assert doc["files"][0]["rows_trained"] == 0


def test_lineage_takes_the_file_itself(sample: SampleRoot, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "unknown.jsonl"
    path.write_text("{}\n")
    assert ask(capsys, sample, "lineage", str(path), code=2)["error"]["error"] == "not_found"


def test_lineage_of_a_name_that_no_file_can_have_is_not_found(sample: SampleRoot) -> None:
    assert main(["lineage", "n" * 300, "--root", str(sample.ws.root)]) == 2


def test_logs_of_all_processes_are_merged_by_time(sample: SampleRoot, capsys: Capture) -> None:
    for name, second in (("daemon", 1), ("trainer", 0), ("daemon", 2)):
        record = {"time": f"2026-01-01T00:00:0{second}.0Z", "level": "info", "logger": name, "message": f"m{second}"}
        with (sample.ws.logs_dir / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    lines = read(capsys, sample, "logs").splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["m0", "m1", "m2"]
    assert [line.rpartition(" ")[2] for line in read(capsys, sample, "logs", "-n", "1", "daemon").splitlines()] == [
        "m2"
    ]


def test_an_unknown_log_is_named_with_those_there_are(sample: SampleRoot, capsys: Capture) -> None:
    (sample.ws.logs_dir / "daemon.jsonl").write_text("")
    assert main(["logs", "demon", "--root", str(sample.ws.root)]) == 2
    assert "one of: daemon" in capsys.readouterr().err


def test_a_long_name_is_shortened_for_people_and_whole_for_programs(sample: SampleRoot, capsys: Capture) -> None:
    name = "n" * 200 + "-part-7.jsonl"
    sample.job("done", name)
    shown = read(capsys, sample, "jobs")
    assert "n…n" in shown
    assert "n-part-7.jsonl" in shown
    assert max(len(line) for line in shown.splitlines()) < 160
    assert name in [job["file"] for job in ask(capsys, sample, "jobs")["jobs"]]


def test_a_job_says_which_checkpoint_holds_it_and_whether_that_is_served(sample: SampleRoot, capsys: Capture) -> None:
    kept, best = (checkpoint.id for checkpoint in sample.catalogue.committed()[1:])
    assert f"in checkpoint {best}, which is served" in read(capsys, sample, "jobs", "leftshift-train.jsonl")
    assert f"in checkpoint {kept}, not served" in read(capsys, sample, "jobs", "greetings.jsonl")
    assert "in checkpoint" not in read(capsys, sample, "jobs", "broken.jsonl")
