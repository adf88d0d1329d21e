"""The JSON twins say what the files say, in the shapes of the contract."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from flask.testing import FlaskClient

from core.atomic import write_json
from core.checkpoints import Catalogue
from core.daemon.pid_manager import boot_id
from core.paths import Workspace
from core.verdicts import all_verdicts
from sample_root import SampleRoot, stamp


def get(client: FlaskClient, address: str, status: int = 200) -> Any:
    answer = client.get(address)
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.content_type == "application/json"
    return json.loads(answer.data)


ALL = ("status", "jobs", "queue", "lineage", "checkpoints", "leaderboard", "metrics", "gpu", "journal")


@pytest.mark.parametrize("name", ALL)
def test_every_subject_answers_over_an_empty_root(client: FlaskClient, name: str) -> None:
    assert isinstance(get(client, f"/api/{name}"), dict)


def test_the_shapes_of_an_empty_root_are_those_of_a_full_one(client: FlaskClient) -> None:
    assert get(client, "/api/jobs")["jobs"] == []
    assert get(client, "/api/checkpoints")["checkpoints"] == []
    assert get(client, "/api/leaderboard") == {"serving": None, "candidates": []}
    assert get(client, "/api/lineage")["summary"] == {"worst_offenders": []}
    status = get(client, "/api/status")
    assert (status["daemon"], status["training"], status["deployment"]) == (None, None, None)
    assert status["health"]["daemon"]["state"] == "absent"


def test_jobs_are_the_very_verdicts_that_the_command_line_prints(client: FlaskClient, sample: SampleRoot) -> None:
    assert get(client, "/api/jobs")["jobs"] == all_verdicts(sample.ws)


def test_one_job_shows_its_rows_and_its_audit_and_no_list_does(client: FlaskClient, sample: SampleRoot) -> None:
    verdict = sample.job("high")
    job_id = verdict["job_id"]
    mask = [{"line": 1, "tokens": 2, "trained": 1, "pieces": [{"text": "<b>secret row</b>", "trained": True}]}]
    write_json(sample.ws.lane("high") / job_id / "verdict.json", verdict | {"mask": mask})
    sample.ws.audits_dir.mkdir()
    warning = {"validator": "DataValidator", "version": "1.0.0", "severity": "warning", "code": "seen_before"}
    issues = [warning | {"count": 3, "examples": [1], "message": "3 rows"}]
    audit = {"at": "now", "report": "status/audits/x.html", "issues": issues, "facts": {"rows": 9}}
    write_json(sample.ws.audits_dir / f"{job_id}.json", audit)
    [shown] = get(client, f"/api/jobs/{job_id}")["jobs"]
    assert shown["mask"] == mask and shown["issues"][-1]["code"] == "seen_before"
    assert shown["audit"] == {"at": "now", "report": "status/audits/x.html", "rows": 9}
    for address in ("/api/jobs", "/api/queue", "/api/jobs?q=high"):
        assert "secret row" not in client.get(address).get_data(as_text=True)


def test_a_waiting_job_is_queued_whatever_its_verdict_says(client: FlaskClient, sample: SampleRoot) -> None:
    verdict = sample.job("high", state="done")
    assert get(client, f"/api/jobs/{verdict['job_id']}")["jobs"][0]["state"] == "queued"


def test_pages_walk_through_all_jobs_newest_first_without_a_gap(client: FlaskClient, sample: SampleRoot) -> None:
    everything = [job["job_id"] for job in get(client, "/api/jobs")["jobs"]]
    walked: list[str] = []
    before = ""
    for _ in range(len(everything)):
        page = get(client, f"/api/jobs?newest=3{before}")
        walked = [job["job_id"] for job in page["jobs"]] + walked
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert walked == everything


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        ("state=rejected", ["broken.jsonl", "too-good.jsonl"]),
        ("state=failed,held", ["spiky.jsonl"]),
        ("state=queued", ["dialogues-0413.jsonl", "old-notes.jsonl"]),
        ("q=LEFTSHIFT", ["leftshift-train.jsonl", "too-good.jsonl"]),
        ("q=non_finite", ["spiky.jsonl"]),
        ("q=nowhere", []),
        ("state=done&q=greet", ["greetings.jsonl"]),
    ],
)
def test_jobs_are_filtered(client: FlaskClient, sample: SampleRoot, asked: str, files: list[str]) -> None:
    assert [job["file"] for job in get(client, f"/api/jobs?{asked}")["jobs"]] == files


def test_a_verdict_that_changes_is_read_again(client: FlaskClient, sample: SampleRoot) -> None:
    job = get(client, "/api/jobs?state=failed")["jobs"][0]
    path = sample.ws.lane("failed") / job["job_id"] / "verdict.json"
    path.write_text(json.dumps(job | {"message": "something else"}))
    assert get(client, "/api/jobs?state=failed")["jobs"][0]["message"] == "something else"


def test_a_job_that_moves_is_seen_in_its_new_lane_at_once(client: FlaskClient, sample: SampleRoot) -> None:
    before = get(client, "/api/queue")["lanes"]
    (waiting,) = os.listdir(sample.ws.lane("low"))
    os.rename(sample.ws.lane("low") / waiting, sample.ws.lane("high") / waiting)
    after = get(client, "/api/queue")["lanes"]
    assert (before["low"], before["high"], after["low"], after["high"]) == (1, 0, 0, 1)


def test_a_change_in_the_same_tick_of_the_clock_is_not_missed(client: FlaskClient, sample: SampleRoot) -> None:
    folder = sample.ws.lane("low")
    tick_ns = time.time_ns() + 10**9  # a listing made in the tick of a change must not be kept
    os.utime(folder, ns=(tick_ns, tick_ns))
    assert get(client, "/api/queue")["lanes"]["low"] == 1
    sample.job("low")
    os.utime(folder, ns=(tick_ns, tick_ns))
    assert get(client, "/api/queue")["lanes"]["low"] == 2


@pytest.mark.parametrize("content", ["", "{", '{"a": NaN}', "[]"])
def test_a_damaged_verdict_is_shown_as_unreadable_and_hides_no_other(
    client: FlaskClient, sample: SampleRoot, content: str
) -> None:
    verdict = sample.job("done")
    (sample.ws.lane("done") / verdict["job_id"] / "verdict.json").write_text(content)
    shown = get(client, "/api/jobs?state=done")["jobs"]
    assert [job["code"] for job in shown] == ["ok", "ok", "unreadable"]


def test_the_queue_counts_every_lane_and_shows_what_waits_first(client: FlaskClient, sample: SampleRoot) -> None:
    sample.job("high", "urgent.jsonl")
    queue = get(client, "/api/queue")
    assert queue["lanes"] == {
        "checking": 0, "high": 1, "normal": 1, "low": 1, "active": 1, "done": 2, "failed": 1, "held": 0, "rejected": 2,
    }  # fmt: skip
    assert [job["file"] for job in queue["waiting"]] == ["urgent.jsonl", "dialogues-0413.jsonl", "old-notes.jsonl"]
    assert [job["file"] for job in queue["active"]] == ["dialogues-0412.jsonl"]
    assert [entry["file"] for entry in queue["ignored"]] == ["notes.txt", "latest.jsonl"]


def test_checkpoints_are_the_committed_manifests_oldest_first(client: FlaskClient, sample: SampleRoot) -> None:
    committed = [checkpoint.manifest for checkpoint in Catalogue(sample.ws, "main").committed()]
    answer = get(client, "/api/checkpoints")
    assert answer["checkpoints"] == committed
    assert get(client, "/api/checkpoints?newest=1")["checkpoints"] == committed[-1:]


def test_a_removed_checkpoint_is_gone_from_the_list_but_can_be_asked_for(
    client: FlaskClient, sample: SampleRoot
) -> None:
    base, kept, _best = sample.catalogue.committed()
    get(client, "/api/checkpoints")
    sample.catalogue.remove(kept)
    listed = [manifest["id"] for manifest in get(client, "/api/checkpoints")["checkpoints"]]
    assert kept.id not in listed
    assert base.id in listed
    assert get(client, f"/api/checkpoints/{kept.id}")["checkpoints"][0]["id"] == kept.id


def test_a_folder_without_a_manifest_is_no_checkpoint(client: FlaskClient, sample: SampleRoot) -> None:
    (sample.ws.run_dir("main") / "checkpoint-9999").mkdir()
    assert len(get(client, "/api/checkpoints")["checkpoints"]) == 3


def test_lineage_of_a_checkpoint_lists_its_files_in_order(client: FlaskClient, sample: SampleRoot) -> None:
    best = sample.catalogue.head()
    assert best is not None
    for spelling in (best.id, "560", "checkpoint-560", best.id[:7]):
        answer = get(client, f"/api/lineage/{spelling}")
        assert answer["checkpoint"] == best.id
        assert [entry["file"] for entry in answer["files"]] == ["greetings.jsonl", "leftshift-train.jsonl"]
        assert answer["served"] == best.id


def test_lineage_of_a_file_lists_the_checkpoints_that_saw_it(client: FlaskClient, sample: SampleRoot) -> None:
    first = get(client, "/api/jobs?q=greetings")["jobs"][0]
    answer = get(client, f"/api/lineage/{first['sha256']}")
    assert answer["file"] == first["sha256"]
    assert [key.split("-")[0] for key in answer["checkpoints"]] == ["60", "560"]


def test_the_lineage_summary_is_where_the_older_system_had_it(client: FlaskClient, sample: SampleRoot) -> None:
    assert get(client, "/api/lineage")["summary"] == {"worst_offenders": ["syllo_local@2"]}


@pytest.mark.parametrize(
    "address", ["/api/jobs/nothing", "/api/lineage/nothing", "/api/checkpoints/nothing", "/api/nothing", "/api/gpu/0"]
)
def test_what_does_not_exist_is_404_with_a_reason(client: FlaskClient, sample: SampleRoot, address: str) -> None:
    error = get(client, address, 404)["error"]
    assert error["message"]
    assert error["fix"]


@pytest.mark.parametrize(
    "address",
    [
        "/api/jobs?newest=0",
        "/api/jobs?newest=-5",
        "/api/jobs?newest=ten",
        "/api/jobs?newest=99999999999999999999",
        "/api/jobs?newest=²",
        "/api/jobs?before=..%2f..%2fetc",
        "/api/jobs?state=lost",
        "/api/jobs?limit=3",
        f"/api/jobs?q={'x' * 300}",
        "/api/status?x=1",
        "/api/metrics?since=-2",
        "/api/metrics?max_points=0",
        "/api/metrics?run=..%2f..",
    ],
)
def test_a_bad_parameter_is_refused_by_name(client: FlaskClient, address: str) -> None:
    error = get(client, address, 400)["error"]
    name = address.partition("?")[2].partition("=")[0]
    assert name in error["message"]


def test_status_says_what_the_files_say(client: FlaskClient, sample: SampleRoot) -> None:
    status = get(client, "/api/status")
    assert status["daemon"]["state"] == "training"
    assert status["training"]["current_file"] == "dialogues-0412.jsonl"
    assert status["deployment"]["serving"].startswith("560-")
    assert [part["state"] for part in status["health"].values()] == ["ok", "ok", "ok"]


def test_an_old_heartbeat_is_stale_and_never_fine(client: FlaskClient, sample: SampleRoot) -> None:
    sample.daemon("training", heartbeat=stamp(120))
    health = get(client, "/api/status")["health"]["daemon"]
    assert health["state"] == "stale"
    assert "2 min" in health["message"]


def test_a_heartbeat_from_the_future_is_stale(client: FlaskClient, sample: SampleRoot) -> None:
    sample.daemon("training", heartbeat=stamp(-3600))
    assert get(client, "/api/status")["health"]["daemon"]["state"] == "stale"


def test_a_heartbeat_that_is_no_time_is_stale(client: FlaskClient, sample: SampleRoot) -> None:
    sample.daemon("training", heartbeat="yesterday")
    assert get(client, "/api/status")["health"]["daemon"]["state"] == "stale"


def test_a_daemon_whose_process_ended_or_whose_boot_is_over_is_gone(client: FlaskClient, sample: SampleRoot) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for facts in ({"pid": ended.pid}, {"boot_id": "an earlier one"}):
        sample.daemon("training", heartbeat=stamp(120), **facts)
        assert get(client, "/api/status")["health"]["daemon"]["state"] == "gone"
    assert boot_id() != "an earlier one"


def test_a_stopped_daemon_is_stopped_and_not_stale(client: FlaskClient, sample: SampleRoot) -> None:
    sample.daemon("stopped", heartbeat=stamp(86_400))
    sample.training(heartbeat=stamp(86_400))
    health = get(client, "/api/status")["health"]
    assert (health["daemon"]["state"], health["training"]["state"]) == ("stopped", "stopped")


@pytest.mark.parametrize("content", [b"", b"{", b'{"state": NaN}', b"\xff\xfe", b"[]", b"[" * 100_000])
def test_a_damaged_status_file_is_null_and_the_rest_is_shown(
    client: FlaskClient, sample: SampleRoot, content: bytes
) -> None:
    sample.ws.status_file("training_status.json").write_bytes(content)
    status = get(client, "/api/status")
    assert status["training"] is None
    assert status["daemon"]["state"] == "training"


def test_a_lost_gpu_is_said(client: FlaskClient, sample: SampleRoot) -> None:
    machine = get(client, "/api/gpu")
    assert [(gpu["state"], gpu["message"]) for gpu in machine["gpus"]] == [("lost", "GPU is lost")]
    assert {process["name"] for process in machine["processes"]} >= {"trainer"}


def test_the_journal_gives_the_last_events_and_skips_damaged_lines(client: FlaskClient, workspace: Workspace) -> None:
    lines = [json.dumps({"event": "tick", "number": number}) for number in range(3000)]
    lines[2998] = "{damaged"
    workspace.status_file("events.jsonl").write_text("\n".join(lines) + '\n{"event": "unfinished')
    events = get(client, "/api/journal?newest=3")["events"]
    assert [event["number"] for event in events] == [2996, 2997, 2999]


def test_an_unchanged_document_costs_no_body_the_second_time(client: FlaskClient, sample: SampleRoot) -> None:
    first = client.get("/api/leaderboard")
    again = client.get("/api/leaderboard", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    sample.leaderboard(None)
    changed = client.get("/api/leaderboard", headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status_code == 200


def test_prometheus_sees_the_same_facts(client: FlaskClient, sample: SampleRoot) -> None:
    text = client.get("/metrics").get_data(as_text=True)
    assert 'dropforge_queue_jobs{lane="rejected"} 2.0' in text
    assert "dropforge_daemon_up 1.0" in text
    assert "dropforge_training_loss 1.371" in text
    assert 'dropforge_serving_info{checkpoint="560-' in text


def test_a_name_that_is_no_utf8_survives_as_an_escape(client: FlaskClient, sample: SampleRoot) -> None:
    sample.job("done", "b\udce4d.jsonl")
    jobs = get(client, "/api/jobs?q=b")["jobs"]
    assert any(job["file"] == "b\udce4d.jsonl" for job in jobs)
