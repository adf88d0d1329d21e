"""The daemon starts the background child when a job waits for it and merges what it found once the job has ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.daemon.audits import Audits
from core.daemon.children import Children
from core.daemon.context import Context
from core.daemon.supervisor import Supervisor
from core.job_queue import Job, new_job_id, new_verdict
from core.paths import Workspace
from daemon_rig import FakeSpawn, make_context

ISSUE = {
    "validator": "DataValidator",
    "version": "1.0.0",
    "severity": "warning",
    "code": "near_duplicate",
    "count": 3,
    "examples": [1, 2, 3],
}


class Rig:
    def __init__(self, workspace: Workspace, clock: Any) -> None:
        self.workspace, self.clock, self.spawn = workspace, clock, FakeSpawn()
        self.context: Context = make_context(workspace)
        self.supervisor = Supervisor(start=self.spawn)
        self.changed: list[str] = []
        self.audits = Audits(self.context, Children(workspace, (), self.supervisor), self.changed.append)
        self._last: str | None = None
        workspace.audits_dir.mkdir()

    def job(self, lane: str) -> Job:
        self._last = new_job_id(self._last)
        folder = self.workspace.claim_dir / self._last
        folder.mkdir()
        (folder / "x.jsonl").write_text("{}\n")
        job = self.context.queue.put(folder, lane)
        job.write_verdict(new_verdict(job_id=job.job_id, file="x.jsonl", issues=[{**ISSUE, "code": "crlf"}]))
        return job

    def audited(self, job: Job, code: int = 0) -> None:
        """What the child does: an audit, then its end."""
        doc = {"at": "now", "level": "standard", "report": None, "issues": [ISSUE], "facts": {"rows": 9}}
        (self.workspace.audits_dir / f"{job.job_id}.json").write_text(json.dumps(doc))
        self.spawn.last("audits").code = code

    def tick(self, seconds: float = 2.0) -> None:
        self.clock.advance(seconds)
        self.supervisor.tick(self.clock())
        self.audits.tick(self.clock())


@pytest.fixture
def rig(workspace: Workspace, clock: Any) -> Rig:
    return Rig(workspace, clock)


def codes(job: Job) -> list[str]:
    return [issue["code"] for issue in job.verdict()["issues"]]


def test_nothing_is_started_without_a_job(rig: Rig) -> None:
    rig.tick()
    assert rig.spawn.names() == []


def test_a_job_that_waits_is_audited_and_its_verdict_is_left_to_the_trainer(rig: Rig) -> None:
    job = rig.job("normal")
    rig.tick()
    assert rig.spawn.names() == ["audits"]
    assert "core.daemon.audit_worker" in rig.spawn.last("audits").spec.argv
    rig.audited(job)
    rig.tick()
    assert "audit" not in job.verdict()
    ended = rig.context.queue.move(rig.context.queue.move(job, "active"), "done")
    rig.tick()
    rig.tick()
    assert codes(ended) == ["crlf", "near_duplicate"]
    assert ended.verdict()["audit"] == {"at": "now", "report": None, "rows": 9}
    assert rig.changed == [job.job_id] and rig.spawn.names() == ["audits"]


def test_an_audit_is_merged_once_also_after_a_restart(rig: Rig, clock: Any) -> None:
    job = rig.job("done")
    rig.tick()
    rig.audited(job)
    rig.tick()
    rig.tick()
    assert codes(job) == ["crlf", "near_duplicate"]
    before = (job.folder / "verdict.json").stat().st_ino
    restarted = Audits(rig.context, Children(rig.workspace, (), rig.supervisor), rig.changed.append)
    restarted.tick(clock())
    restarted.tick(clock() + 5)
    rig.tick()
    assert codes(job) == ["crlf", "near_duplicate"]
    assert (job.folder / "verdict.json").stat().st_ino == before


def test_a_job_that_goes_through_the_gates_again_is_audited_again(rig: Rig) -> None:
    job = rig.job("failed")
    rig.tick()
    rig.audited(job)
    rig.tick()
    (rig.workspace.audits_dir / f"{job.job_id}.json").unlink()
    job.write_verdict(new_verdict(job_id=job.job_id, file="x.jsonl"))
    again = rig.context.queue.move(job, "normal")
    rig.tick()
    rig.tick()
    assert rig.spawn.names() == ["audits", "audits"]
    rig.audited(again)
    ended = rig.context.queue.move(again, "done")
    rig.tick()
    rig.tick()
    assert codes(ended) == ["near_duplicate"]


def test_a_child_that_fails_is_not_started_without_a_pause(rig: Rig) -> None:
    rig.job("normal")
    for _ in range(40):
        rig.tick(1.0)
        if rig.spawn.processes:
            rig.spawn.last("audits").code = 4
    assert 2 <= len(rig.spawn.processes) <= 8


def test_the_end_of_the_daemon_ends_the_child(rig: Rig) -> None:
    rig.job("normal")
    rig.tick()
    rig.audits.stop(rig.clock())
    assert rig.spawn.last("audits").signals


def test_the_child_takes_the_lowest_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from core.daemon import audit_worker

    set_to: list[int] = []
    monkeypatch.setattr(os, "setpriority", lambda _which, _who, priority: set_to.append(priority))
    monkeypatch.setattr("psutil.Process.ionice", lambda _self, ioclass: set_to.append(int(ioclass)))
    audit_worker._step_back()
    assert set_to == [19, 3]


def test_a_damaged_audit_is_made_again(rig: Rig) -> None:
    job = rig.job("done")
    rig.tick()
    rig.audited(job)
    file = rig.workspace.audits_dir / f"{job.job_id}.json"
    file.write_text("{")
    rig.tick()
    rig.tick()
    rig.tick()
    assert not file.exists() and rig.spawn.names() == ["audits", "audits"]
    rig.audited(job)
    rig.tick()
    rig.tick()
    assert codes(job) == ["crlf", "near_duplicate"]


def test_many_audits_are_merged_a_little_at_a_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [rig.job("done") for _ in range(30)]
    rig.tick()
    for job in jobs:
        rig.audited(job)
    spent = iter(range(1_000_000))
    monkeypatch.setattr("core.daemon.audits.time.monotonic", lambda: next(spent) * 0.04)
    for _ in range(4):
        rig.tick()
    merged = sum(len(codes(job)) == 2 for job in jobs)
    assert 0 < merged < 30
    for _ in range(40):
        rig.tick()
    assert all(len(codes(job)) == 2 for job in jobs)
