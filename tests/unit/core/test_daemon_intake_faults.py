"""The intake when things fail: workers that die or hang, renames that fail, crashes in between, machines that lack."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from core.atomic import rename_durable
from core.daemon import claims
from core.daemon.background_worker import GateBugError, GateRequest, WorkerNotStartedError
from core.daemon.candidates import Settler, probe, scan
from core.errors import StorageError
from core.paths import Workspace, schema_file
from daemon_rig import IntakeRig


@pytest.fixture
def rig(workspace: Workspace, clock: object) -> Iterator[IntakeRig]:
    made = IntakeRig(workspace, clock)
    yield made
    made.context.wakeup.close()


def test_a_worker_that_dies_once_is_asked_again_and_twice_refuses_the_file(rig: IntakeRig) -> None:
    rig.drop("a.jsonl", "one\n")
    rig.tick()
    rig.worker.deaths.update({"any": 0})
    original = rig.worker.submit

    def die(deaths: int) -> Callable[..., None]:
        left = [deaths]

        def submit(key: str, request: GateRequest) -> None:
            if left[0]:
                left[0] -= 1
                rig.worker.deaths[key] = 1
            original(key, request)

        return submit

    rig.worker.submit = die(1)  # type: ignore[method-assign]
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"]
    rig.worker.submit = die(2)  # type: ignore[method-assign]
    rig.drop("b.jsonl", "two\n")
    rig.settle()
    assert rig.rejected()[0].verdict()["code"] == "crashed"


def test_those_behind_a_file_that_kills_the_worker_are_innocent(rig: IntakeRig) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        rig.drop(name, name + "\n")
    rig.tick()
    original = rig.worker.submit

    def submit(key: str, request: GateRequest) -> None:
        if b"a.jsonl" in b"".join(p.read_bytes() for p in request.folder.glob("*.jsonl")):
            rig.worker.deaths[key] = 1
            for other in list(rig.intake._gating.job_ids):
                if other != key:
                    rig.worker.deaths[other] = 1
        original(key, request)

    rig.worker.submit = submit  # type: ignore[method-assign]
    rig.settle()
    assert rig.lane("normal") == ["b.jsonl", "c.jsonl"]
    assert [job.data_file.name for job in rig.rejected()] == ["a.jsonl"]


def test_a_file_over_which_the_worker_hangs_twice_is_refused_and_the_next_one_goes_on(rig: IntakeRig) -> None:
    rig.worker.hangs = 2
    rig.drop("a.jsonl", "one\n")
    rig.settle()
    rig.drop("b.jsonl", "two\n")
    for _ in range(14):
        rig.tick(100.0)
    assert [job.verdict()["code"] for job in rig.rejected()] == ["crashed"]
    assert rig.lane("normal") == ["b.jsonl"]


def test_a_claim_that_waits_can_be_cancelled(rig: IntakeRig) -> None:
    rig.drop("q.jsonl", "nospec\n")
    rig.tick()
    rig.tick(2.1)
    rig.tick(0.1)
    [claim] = os.listdir(rig.workspace.claim_dir)
    assert rig.intake.cancel(claim)
    assert rig.context.queue.jobs("failed")[0].verdict()["code"] == "cancelled"
    rig.intake.take_back(rig.context.queue.jobs("failed")[0])
    rig.settle()
    assert rig.rejected()[0].job_id == claim


def test_a_gate_that_raises_refuses_the_file(rig: IntakeRig) -> None:
    rig.worker.raises.append(GateBugError("ZeroDivisionError: oops"))
    rig.drop("a.jsonl")
    rig.settle()
    assert rig.rejected()[0].verdict()["code"] == "gate_error"


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left"), OSError(24, "Too many open files"), MemoryError(), WorkerNotStartedError()],
)
def test_a_machine_that_lacks_something_makes_the_file_wait(rig: IntakeRig, error: Exception) -> None:
    rig.worker.raises.append(error)
    rig.drop("a.jsonl")
    rig.tick()
    rig.tick(2.5)
    rig.tick()
    assert "gates" in rig.context.blocks.intake
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"]
    assert not rig.context.blocks.intake


def test_a_disk_that_fails_under_a_file_puts_it_into_held(rig: IntakeRig) -> None:
    rig.worker.raises.append(OSError(5, "Input/output error"))
    rig.drop("a.jsonl")
    rig.settle()
    assert rig.context.queue.jobs("held")[0].verdict()["code"] == "read_error"


@pytest.mark.parametrize("number", range(1, 9))
def test_any_rename_that_fails_once_loses_nothing_and_heals(
    rig: IntakeRig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = [0]
    real = rename_durable

    def sometimes(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] == number:
            raise StorageError("No space left on device", where=str(target))
        real(source, target)

    monkeypatch.setattr(claims, "rename_durable", sometimes)
    monkeypatch.setattr("core.job_queue.rename_durable", sometimes)
    for name in ("a.jsonl", "b.jsonl"):
        rig.drop(name, name + "\n")
        rig.drop(name + ".meta.json", "{}")
    rig.settle()
    rig.settle()
    assert sorted(rig.lane("normal")) == ["a.jsonl", "b.jsonl"]
    assert all(job.sidecar_file.exists() for job in rig.context.queue.jobs("normal"))
    assert rig.intake.idle
    assert not rig.context.blocks.intake


def test_a_claim_left_by_a_crash_is_finished_where_it_stands(rig: IntakeRig) -> None:
    folder = rig.workspace.claim_dir / "20260101T000000000000Z-abcdef"
    folder.mkdir()
    (folder / ".origin.json").write_text('{"lane": "high", "received_at": "2026-01-01T00:00:00.000000Z"}')
    (folder / "a.jsonl").write_text("one\n")
    (rig.workspace.inbox / "a.jsonl.meta.json").write_text("{}")
    empty = rig.workspace.claim_dir / "20260101T000000000001Z-abcdef"
    empty.mkdir()
    (empty / ".origin.json").write_text("{}")
    linked = rig.workspace.claim_dir / "20260101T000000000002Z-abcdef"
    (linked / ".link").mkdir(parents=True)
    (linked / ".link" / "l.jsonl").write_text("linked\n")
    (linked / ".copy.tmp").write_text("half")
    rig.restart()
    rig.settle()
    [job] = rig.context.queue.jobs("high")
    assert job.job_id == folder.name
    assert job.sidecar_file.exists()
    assert rig.context.queue.jobs("normal")[0].data_file.read_text() == "linked\n"
    assert list(rig.workspace.claim_dir.iterdir()) == []


def test_a_decided_claim_is_only_moved_and_not_judged_again(rig: IntakeRig) -> None:
    rig.drop("a.jsonl", "bad\n")
    rig.settle()
    [job] = rig.rejected()
    os.rename(job.folder, rig.workspace.claim_dir / job.job_id)
    calls = list(rig.worker.calls)
    rig.restart()
    rig.settle()
    assert [job.job_id for job in rig.rejected()] == [job.job_id]
    assert rig.worker.calls == calls


def test_nothing_is_taken_while_the_inbox_is_blocked(rig: IntakeRig) -> None:
    rig.context.blocks.intake["disk"] = "disk full: need 1, have 0"
    path = rig.drop("a.jsonl")
    rig.settle()
    assert path.exists()
    del rig.context.blocks.intake["disk"]
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"]


def test_a_hundred_thousand_names_are_scanned_without_being_opened(workspace: Workspace) -> None:
    for number in range(2000):
        (workspace.inbox / f"{number:05}.jsonl").touch()
    asked: list[Path] = []
    settler = Settler(lambda path: asked.append(path))  # type: ignore[func-returns-value]
    found = scan(workspace, (".jsonl",))
    settler.settled(found.candidates, 2.0, 0.0)
    assert (len(found.candidates), asked) == (2000, [])


def test_a_file_that_may_not_be_read_stays_and_does_not_keep_the_daemon_busy(
    rig: IntakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rig.drop("secret.jsonl")
    real = os.open

    def refuse(name: str, *arguments: Any, **more: Any) -> int:
        if str(name).endswith("secret.jsonl"):
            raise PermissionError(13, "Permission denied")
        return real(name, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    rig.settle()
    assert path.exists()
    assert rig.intake.idle
    assert rig.intake.ignored[0]["reason"].startswith("permission denied")
    monkeypatch.setattr(os, "open", real)
    rig.settle()
    assert rig.lane("normal") == ["secret.jsonl"]


def test_every_verdict_fits_the_schema(rig: IntakeRig) -> None:
    for name, text in (("ok.jsonl", "a\n"), ("dup.jsonl", "a\n"), ("bad.jsonl", "bad\n"), ("n.jsonl", "nospec\n")):
        rig.drop(name, text)
    rig.drop("gone.jsonl.meta.json", "{}")
    rig.settle()
    rig.tick(24 * 3600)
    rig.tick(3.0)
    jobs = [*rig.context.queue.jobs("normal"), *rig.context.queue.jobs("done"), *rig.rejected()]
    assert len(jobs) == 5
    schema = json.loads(schema_file("verdict").read_text())
    for job in jobs:
        jsonschema.validate(job.verdict(), schema)


def test_the_probe_says_whether_somebody_writes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("w"):
        assert probe(path) == "still open for writing"
    assert probe(path) is None
    with path.open():
        assert probe(path) is None
    assert "cannot be opened" in str(probe(tmp_path / "none"))
