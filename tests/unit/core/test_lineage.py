"""Sidecars are read with care and merged without loss."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from core.lineage import GENERATORS, Sidecar, SidecarError, merged, read_sidecar, with_late_lineage
from core.lineage_tracker import LineageTracker, wilson_interval


def test_without_a_sidecar_the_generator_is_manual(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "x.meta.json").generator == "manual@0"
    assert Sidecar({"generator_id": "syllo_local", "generator_version": "1.2"}).generator == "syllo_local@1.2"
    assert "manual" in GENERATORS


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_fifo_or_folder_in_place_of_a_sidecar_neither_blocks_nor_passes(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "x.meta.json")
    with pytest.raises(SidecarError, match="regular file"):
        read_sidecar(tmp_path / "x.meta.json")


def test_a_bom_before_a_sidecar_is_forgiven(tmp_path: Path) -> None:
    (tmp_path / "x.meta.json").write_bytes(b'\xef\xbb\xbf{"generator_id": "manual"}')
    assert read_sidecar(tmp_path / "x.meta.json").generator_id == "manual"


def test_a_late_sidecar_adds_lineage_only_and_overrides_nothing() -> None:
    late = Sidecar({"generator_id": "late", "spec": "alpaca_v1", "priority": "high", "source": "s"})
    assert with_late_lineage(Sidecar(), late) == {"generator_id": "late", "source": "s"}
    assert with_late_lineage(Sidecar({"generator_id": "first"}), late)["generator_id"] == "first"


def test_the_daemons_part_wins_over_a_forged_one() -> None:
    forged = Sidecar({"validation_passed": True, "generator_id": "g"})
    assert merged(forged, {"validation_passed": False}) == {"validation_passed": False, "generator_id": "g"}


def verdict(job: int, state: str = "done", code: str = "ok") -> dict[str, object]:
    issue = {"validator": "SpecValidator", "version": "1.0.0", "severity": "error", "code": code, "count": 1}
    issues = [issue | {"examples": [1]}] if state == "rejected" else []
    return {"job_id": f"job{job}", "state": state, "code": code, "rows": 10, "issues": issues}


def test_totals_count_files_rows_and_failures_of_each_generator() -> None:
    tracker = LineageTracker()
    tracker.add(verdict(1), "a@1")
    tracker.add(verdict(2, "rejected", "spec_mismatch"), "a@1")
    tracker.add(verdict(3, "failed", "crashed"), "b@2")
    doc = tracker.as_dict()
    assert doc["generators"]["a@1"]["files"] == 2 and doc["generators"]["a@1"]["fail_rate"] == 0.5
    assert doc["generators"]["a@1"]["top_errors"] == [{"code": "spec_mismatch", "count": 1}]
    assert doc["generators"]["b@2"]["passed"] == 1
    assert doc["validators"]["SpecValidator@1.0.0"]["failed"] == 1
    assert doc["validators"]["DataValidator@1.0.0"]["failed"] == 0
    assert (doc["summary"]["files"], doc["summary"]["rows"], doc["summary"]["failed"]) == (3, 30, 1)


def test_the_same_job_fed_twice_counts_once() -> None:
    tracker = LineageTracker()
    for _ in range(3):
        tracker.add(verdict(1), "a@1")
    assert tracker.as_dict()["summary"]["files"] == 1


def test_one_of_three_is_no_offender_and_a_third_of_sixty_is() -> None:
    few, many, lucky = LineageTracker(), LineageTracker(), LineageTracker()
    for job in range(3):
        few.add(verdict(job, "rejected" if job == 0 else "done", "bad_json"), "g@1")
    for job in range(60):
        many.add(verdict(job, "rejected" if job % 3 == 0 else "done", "bad_json"), "g@1")
    for job in range(25):
        lucky.add(verdict(job, "rejected" if job < 2 else "done", "bad_json"), "g@1")  # 8 %, but within chance
    assert few.as_dict()["summary"]["worst_offenders"] == []
    assert lucky.as_dict()["summary"]["worst_offenders"] == []
    assert [o["generator"] for o in many.as_dict()["summary"]["worst_offenders"]] == ["g@1"]


@pytest.mark.parametrize(("failed", "total", "low", "high"), [(0, 0, 0, 1), (1, 3, 0.0615, 0.7923), (0, 20, 0, 0.1611)])
def test_the_wilson_interval_equals_published_values(failed: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(failed, total) == pytest.approx((low, high), abs=1e-3)
