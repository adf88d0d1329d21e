"""core.ledger_curve: the chart shows every spike and never a step twice, and looking changes nothing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.errors import StorageError
from core.ledger import open_ledger
from core.ledger_curve import CurveReader
from core.paths import Workspace


def write_metrics(workspace: Workspace, losses: dict[int, float | None]) -> str:
    """Feed step losses to the ledger as the daemon does; returns its URL."""
    path = workspace.metrics_file("main")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "loss": loss, "learning_rate": step / 1000} for step, loss in losses.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    url = f"sqlite:///{workspace.status_file('ledger.db')}"
    ledger = open_ledger(url)
    ledger.feed_metrics("main", path)
    ledger.close()
    return url


def read(url: str, since: int | None = None, max_points: int = 1000) -> list[dict[str, Any]]:
    return CurveReader(url).read("main", since=since, max_points=max_points).points


def test_a_short_curve_is_given_step_by_step(workspace: Workspace) -> None:
    url = write_metrics(workspace, {1: 2.0, 2: 1.5, 3: 1.25})
    points = read(url)
    assert [(p["step"], p["loss"], p["loss_min"], p["loss_max"]) for p in points] == [
        (1, 2.0, 2.0, 2.0), (2, 1.5, 1.5, 1.5), (3, 1.25, 1.25, 1.25),
    ]  # fmt: skip
    assert [p["learning_rate"] for p in points] == [0.001, 0.002, 0.003]


@pytest.mark.parametrize("max_points", [1, 7, 100, 999, 1000])
def test_a_long_curve_is_thinned_and_keeps_its_spike_its_ends_and_every_step(
    workspace: Workspace, max_points: int
) -> None:
    losses: dict[int, float | None] = dict.fromkeys(range(1, 1001), 1.0) | {333: 50.0, 777: 0.01}
    points = read(write_metrics(workspace, losses), max_points=max_points)
    assert len(points) <= max_points
    assert points[-1]["step"] == 1000
    assert max(p["loss_max"] for p in points) == 50.0
    assert min(p["loss_min"] for p in points) == 0.01
    ends = [0, *(p["step"] for p in points)]
    mean = sum((end - start) * p["loss"] for start, end, p in zip(ends[:-1], ends[1:], points, strict=True)) / 1000
    assert mean == pytest.approx(sum(filter(None, losses.values())) / 1000)


def test_since_gives_only_later_steps(workspace: Workspace) -> None:
    url = write_metrics(workspace, dict.fromkeys(range(1, 101), 1.0))
    assert [p["step"] for p in read(url, since=97)] == [98, 99, 100]
    assert read(url, since=100) == []
    assert CurveReader(url).read("main", since=100, max_points=9).last_step == 100


def test_another_run_has_a_curve_of_its_own(workspace: Workspace) -> None:
    url = write_metrics(workspace, {1: 1.0})
    assert CurveReader(url).read("other", since=None, max_points=9).points == []


def test_a_loss_that_is_no_number_is_null(workspace: Workspace) -> None:
    assert [p["loss"] for p in read(write_metrics(workspace, {1: 1.0, 2: None}))] == [1.0, None]


def test_looking_at_a_missing_ledger_gives_nothing_and_makes_nothing(tmp_path: Path) -> None:
    assert read(f"sqlite:///{tmp_path / 'absent' / 'ledger.db'}") == []
    assert os.listdir(tmp_path) == []


def test_looking_needs_no_writer_and_changes_no_byte(workspace: Workspace) -> None:
    url = write_metrics(workspace, {1: 1.0})
    file = workspace.status_file("ledger.db")
    before = file.read_bytes()
    assert len(read(url)) == 1
    assert file.read_bytes() == before


def test_a_name_with_special_characters_is_found(workspace: Workspace, tmp_path: Path) -> None:
    odd = Workspace(tmp_path / "a ?#%41 root")
    odd.make_folders()
    assert len(read(write_metrics(odd, {1: 1.0}))) == 1


def test_new_steps_are_seen_while_the_writer_has_the_ledger_open(workspace: Workspace) -> None:
    url = write_metrics(workspace, {1: 1.0})
    reader = CurveReader(url)
    ledger = open_ledger(url)
    with workspace.metrics_file("main").open("a") as file:
        file.write('{"step": 2, "loss": 0.5}\n')
    ledger.feed_metrics("main", workspace.metrics_file("main"))
    assert [p["step"] for p in reader.read("main", since=None, max_points=9).points] == [1, 2]
    ledger.close()


def test_a_file_that_is_no_ledger_is_a_storage_error_with_the_fix(workspace: Workspace) -> None:
    file = workspace.status_file("ledger.db")
    file.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StorageError, match="rebuild"):
        read(f"sqlite:///{file}")


def test_an_empty_file_is_an_empty_curve(workspace: Workspace) -> None:
    workspace.status_file("ledger.db").touch()
    assert read(f"sqlite:///{workspace.status_file('ledger.db')}") == []
