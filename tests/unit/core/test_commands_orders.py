"""Commands that ask the daemon: they write request files, and nothing else."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.cli import main
from core.control import parse_control
from core.paths import Workspace
from core.status import iso_now, write_status
from sample_root import SampleRoot, working_day


def control_files(ws: Workspace) -> dict[str, dict[str, Any]]:
    """Every control file, parsed as the daemon parses it: {command: arguments}."""
    files = [parse_control(p.name, p.read_bytes()) for p in ws.control_dir.iterdir() if not p.name.startswith(".")]
    return {file.command: file.arguments for file in files}


@pytest.mark.parametrize("command", ["pause", "resume", "skip", "stop", "checkpoint"])
def test_an_order_is_one_control_file(workspace: Workspace, command: str) -> None:
    assert main([command, "--root", str(workspace.root)]) == 0
    assert control_files(workspace) == {command: {}}


def test_a_pause_carries_its_reason_and_the_wish_for_the_gpu(workspace: Workspace) -> None:
    assert main(["pause", "--reason", "lunch", "--release-gpu", "--root", str(workspace.root)]) == 0
    assert control_files(workspace) == {"pause": {"reason": "lunch", "release_gpu": True}}


def test_wait_returns_when_the_daemon_says_the_order_is_in_effect(
    workspace: Workspace, wait_until: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    SampleRoot(workspace).daemon()
    ack = {"command": "pause", "seen_at": iso_now(), "effective_at": iso_now(), "step": 1, "checkpoint": None}
    write_status(workspace.status_file("control.json"), ack)
    codes: list[int] = []
    waiting = threading.Thread(target=lambda: codes.append(main(["pause", "--wait", "--root", str(workspace.root)])))
    waiting.start()
    wait_until((workspace.control_dir / "pause").exists, what="the control file")
    assert codes == [], "an older acknowledgement must not count"
    mine = ack | {"seen_at": iso_now(), "step": 7}
    later = {"command": "checkpoint", "seen_at": iso_now(), "effective_at": None, "step": None, "checkpoint": None}
    write_status(workspace.status_file("control.json"), later | {"recent": [ack, mine, later]})
    waiting.join(20)
    assert codes == [0]
    assert "step 7" in capsys.readouterr().out


def test_without_a_daemon_waiting_is_refused_and_asking_says_so(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "--wait", "--root", str(workspace.root)]) == 2
    assert control_files(workspace) == {}
    assert main(["checkpoint", "--root", str(workspace.root)]) == 0
    assert capsys.readouterr().out == (
        "checkpoint: no daemon runs in this root (dropforge up), so there is nothing to do: the next one forgets it\n"
    )
    assert main(["pause", "--root", str(workspace.root)]) == 0
    assert "the next one starts paused" in capsys.readouterr().out
    assert main(["rollback", "--root", str(workspace.root)]) == 0
    assert capsys.readouterr().out == "rollback: asked for; done when a daemon runs (dropforge up)\n"


def test_a_reason_that_the_daemon_would_not_read_is_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pause", "--reason", "r" * 5000, "--root", str(workspace.root)]) == 2
    assert "longer than 4096 bytes" in capsys.readouterr().err
    assert control_files(workspace) == {}


def test_orders_into_a_root_that_cannot_be_written_are_explained(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.control_dir.rmdir()
    workspace.control_dir.write_text("in the way")
    for verb in ("pause", "rollback"):
        assert main([verb, "--root", str(workspace.root)]) == 4
        assert f"{workspace.control_dir}: File exists" in capsys.readouterr().err


def test_resume_takes_a_pause_back_that_no_daemon_has_heard(workspace: Workspace) -> None:
    assert main(["pause", "--root", str(workspace.root)]) == 0
    (workspace.control_dir / "pause").rename(workspace.control_dir / "PAUSE")
    assert main(["resume", "--root", str(workspace.root)]) == 0
    assert control_files(workspace) == {"resume": {}}


def test_a_request_names_the_checkpoint_in_full(workspace: Workspace) -> None:
    best = working_day(workspace).catalogue.committed()[-1]
    for verb in ("promote", "rewind", "pin", "evaluate"):
        assert main([verb, best.id[:8], "--root", str(workspace.root)]) == 0
    assert control_files(workspace) == {verb: {"id": best.id} for verb in ("promote", "rewind", "pin", "evaluate")}


def test_a_pin_can_be_taken_back(workspace: Workspace) -> None:
    best = working_day(workspace).catalogue.committed()[-1]
    assert main(["pin", best.id, "--off", "--root", str(workspace.root)]) == 0
    assert control_files(workspace) == {"pin": {"id": best.id, "off": True}}


def test_an_unknown_checkpoint_writes_nothing(workspace: Workspace) -> None:
    working_day(workspace)
    assert main(["promote", "999", "--root", str(workspace.root)]) == 2
    assert control_files(workspace) == {}


def test_rollback_needs_no_id(workspace: Workspace) -> None:
    assert main(["rollback", "--root", str(workspace.root)]) == 0
    assert control_files(workspace) == {"rollback": {}}


def test_retry_and_cancel_name_a_job_that_exists(workspace: Workspace) -> None:
    job_id = SampleRoot(workspace).job("failed")["job_id"]
    assert main(["retry", job_id, "--root", str(workspace.root)]) == 0
    assert main(["cancel", "20260101T000000000000Z-abcdef", "--root", str(workspace.root)]) == 2
    assert control_files(workspace) == {"retry": {"id": job_id}}


@pytest.mark.parametrize(
    ("verb", "lane", "fix"),
    [
        ("retry", "rejected", "drop the mended file again"),
        ("retry", "done", "nothing to retry"),
        ("retry", "normal", "it waits already"),
        ("cancel", "done", "has ended"),
        ("cancel", "rejected", "has ended"),
    ],
)
def test_what_a_jobs_state_does_not_allow_is_refused_at_once(
    workspace: Workspace, verb: str, lane: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = SampleRoot(workspace).job(lane)["job_id"]
    assert main([verb, job_id, "--root", str(workspace.root)]) == 2
    assert fix in capsys.readouterr().err
    assert control_files(workspace) == {}


def test_a_job_is_retried_by_its_files_name_and_a_claim_is_the_daemons_to_answer(workspace: Workspace) -> None:
    sample = SampleRoot(workspace)
    job_id = sample.job("held", "mine.jsonl")["job_id"]
    assert main(["retry", "mine.jsonl", "--root", str(workspace.root)]) == 0
    assert control_files(workspace) == {"retry": {"id": job_id}}
    waiting = sample.job("normal")["job_id"]
    workspace.claim_dir.mkdir(exist_ok=True)
    (workspace.lane("normal") / waiting).rename(workspace.claim_dir / waiting)
    assert main(["cancel", waiting, "--root", str(workspace.root)]) == 0
    assert control_files(workspace)["cancel"] == {"id": waiting}


def test_without_a_previous_checkpoint_there_is_no_way_back(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = SampleRoot(workspace)
    sample.deployment("0-aaaaaaaaaaaa")
    assert main(["rollback", "--root", str(workspace.root)]) == 2
    assert "dropforge promote ID" in capsys.readouterr().err
    sample.deployment("5-bbbbbbbbbbbb", "0-aaaaaaaaaaaa")
    assert main(["rollback", "--root", str(workspace.root)]) == 0
    assert control_files(workspace) == {"rollback": {}}


def test_suite_add_stages_the_suite_complete_and_asks_for_it(workspace: Workspace, tmp_path: Path) -> None:
    items = tmp_path / "sums.jsonl"
    items.write_text('{"id": "a", "prompt": "1+1", "expected": "2"}\n')
    assert main(["suite", "add", str(items), "--metric", "accuracy", "--root", str(workspace.root)]) == 0
    staged = workspace.own_suites_dir / ".incoming-sums"
    assert (staged / "items.jsonl").read_text() == items.read_text()
    head = json.loads((staged / "suite.json").read_text())
    assert head == {"name": "sums", "version": 1, "metric": "accuracy", "role": "primary"}
    assert control_files(workspace) == {"suite": {"id": "sums"}}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"prompt": "a", "expected": "b"}\nnot json\n', ":2"),
        ('{"prompt": "a"}\n', ":1"),
        ("\n", "no items"),
        ("[]", ":1"),
        ('{"prompt": "a", "expected": "(", "grader": "regex"}\n', "sums.jsonl:1: expected: the expected pattern"),
    ],
)
def test_a_broken_suite_is_refused_by_its_line_and_leaves_nothing(
    workspace: Workspace, tmp_path: Path, content: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    items = tmp_path / "sums.jsonl"
    items.write_text(content)
    assert main(["suite", "add", str(items), "--root", str(workspace.root)]) in (2, 5)
    assert place in capsys.readouterr().err
    assert list(workspace.own_suites_dir.iterdir()) == []
    assert control_files(workspace) == {}


def test_a_suite_of_texts_without_ids_is_accepted(workspace: Workspace, tmp_path: Path) -> None:
    items = tmp_path / "prose.jsonl"
    items.write_text('{"text": "Call me Ishmael."}\n{"text": "It was a pleasure to burn."}\n')
    assert main(["suite", "add", str(items), "--metric", "perplexity", "--root", str(workspace.root)]) == 0
