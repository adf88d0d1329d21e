"""The ledger: fed from the files, fed twice without harm, rebuilt from the folders."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.daemon.ledger_feed import LedgerFeed
from core.errors import MissingToolError, StorageError
from core.job_queue import Job, new_verdict
from core.ledger import META, Ledger, ledger_url, open_ledger, rebuild
from core.ledger_curve import CurveReader
from core.paths import Workspace
from core.settings import load_settings
from daemon_rig import make_context

JOB = "20260101T00000000000{}Z-abcdef"


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """Every test below holds for both databases."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = request.getfixturevalue("postgresql_url")
    opened = open_ledger(url)
    yield opened
    with opened.engine.begin() as connection:
        META.drop_all(connection)
    opened.close()


def lines(path: Path, *documents: dict[str, object], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n".join(json.dumps(doc) for doc in documents) + end)


def test_new_lines_are_read_once_and_a_half_line_waits(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0})
    lines(path, {"step": 3, "loss": 1.0}, end="")
    assert ledger.feed_metrics("main", path) == 2
    assert ledger.feed_metrics("main", path) == 0
    lines(path, {"step": 4}, end="\n")
    path.write_text(path.read_text().replace('}{"step": 4', '}\n{"step": 4'))
    assert ledger.feed_metrics("main", path) == 2
    assert [doc["step"] for doc in ledger.metrics("main")] == [1, 2, 3, 4]
    assert [doc["step"] for doc in ledger.metrics("main", since=2)] == [3, 4]


def test_steps_that_were_taken_back_leave_the_curve(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, *({"step": step, "loss": 1.0} for step in range(1, 11)))
    ledger.feed_metrics("main", path)
    lines(path, {"step": 5, "loss": 9.0}, {"step": 6, "loss": 9.0}, {"step": 6, "loss": 8.0})
    ledger.feed_metrics("main", path)
    assert [(doc["step"], doc["loss"]) for doc in ledger.metrics("main")][3:] == [(4, 1.0), (5, 9.0), (6, 8.0)]


def test_a_damaged_line_and_a_foreign_shape_are_passed_over(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"seq": 1, "kind": "a"}\n\xff\xfe\n[1]\n{"seq": "x"}\n{"seq": 2, "kind": "b"}\n')
    assert ledger.feed_events(path) == 2
    assert [doc["kind"] for doc in ledger.events()] == ["a", "b"]
    assert [doc["kind"] for doc in ledger.events(after=1)] == ["b"]


def test_a_file_that_became_shorter_is_read_from_the_start(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines(path, *({"seq": n, "kind": "old"} for n in range(1, 50)))
    ledger.feed_events(path)
    path.unlink()
    lines(path, {"seq": 50, "kind": "new"})
    assert ledger.feed_events(path) == 1


def test_a_job_is_replaced_and_not_repeated(ledger: Ledger) -> None:
    for state in ("queued", "active", "done"):
        ledger.put_jobs([new_verdict(job_id=JOB.format(1), state=state)])
    assert [doc["state"] for doc in ledger.jobs()] == ["done"]
    assert ledger.jobs(state="queued") == []


def test_a_database_that_cannot_be_opened_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="ledger"):
        open_ledger(f"sqlite:///{tmp_path / 'no' / 'folder' / 'l.db'}")


def fill(workspace: Workspace) -> None:
    for number, lane in enumerate(("normal", "done", "failed")):
        folder = workspace.lane(lane) / JOB.format(number)
        folder.mkdir()
        state = "queued" if lane == "normal" else lane
        Job(folder.name, lane, folder).write_verdict(new_verdict(job_id=folder.name, state=state))
    folder = workspace.rejected_dir / JOB.format(9)
    folder.mkdir()
    Job(folder.name, "rejected", folder).write_verdict(new_verdict(job_id=folder.name, state="rejected"))
    lines(workspace.metrics_file("main"), {"step": 1, "loss": 1.0})
    judged = workspace.evaluation_dir("main", "1-aaaaaaaaaaaa")
    judged.mkdir(parents=True)
    (judged / "metrics.json").write_text('{"decision": "keep", "p_value": 0.5}')
    (judged / "deploy.json").write_text('{"ok": true}')


def test_the_feed_follows_the_folders_and_a_rebuild_says_the_same(workspace: Workspace) -> None:
    context = make_context(workspace)
    fill(workspace)
    context.events.emit("started", "up")
    feed = LedgerFeed(context)
    feed.tick(0.0)
    moved = workspace.lane("normal") / JOB.format(0)
    moved.rename(workspace.lane("done") / moved.name)
    job = Job(moved.name, "done", workspace.lane("done") / moved.name)
    job.write_verdict(new_verdict(job_id=moved.name, state="done"))
    feed.tick(5.0)
    feed.close()
    url = ledger_url(workspace, load_settings(workspace, env={}))
    live = open_ledger(url)
    counts, states = live.counts(), [doc["state"] for doc in live.jobs()]
    live.close()
    assert counts == {"jobs": 4, "metrics": 1, "evaluations": 1, "deployments": 1, "events": 1}
    assert states == ["rejected", "failed", "done", "done"]
    workspace.status_file("ledger.db").unlink()
    assert rebuild(workspace, url) == counts
    context.wakeup.close()


def test_a_ledger_that_refuses_does_not_stop_the_daemon(workspace: Workspace) -> None:
    context = make_context(workspace, ledger={"url": f"sqlite:///{workspace.root / 'none' / 'l.db'}"})
    LedgerFeed(context).tick(0.0)
    context.wakeup.close()


def test_a_missing_driver_says_the_pip_line() -> None:
    with pytest.raises(MissingToolError, match=r"pip install 'dropforge\[postgres\]'"):
        open_ledger("postgresql+asyncpg://nobody@127.0.0.1/none")


def test_the_loss_curve_is_read_from_either_database(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines(path, *({"step": step, "loss": float(step)} for step in range(1, 101)))
    ledger.feed_metrics("main", path)
    url = ledger.engine.url.render_as_string(hide_password=False)
    reader = CurveReader(url)
    curve = reader.read("main", since=None, max_points=10)
    reader.close()
    assert len(curve.points) <= 10
    assert (curve.points[0]["loss_min"], curve.points[-1]["loss_max"], curve.last_step) == (1.0, 100.0, 100)
