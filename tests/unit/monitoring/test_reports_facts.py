"""What a report says of a root whose history is known."""

import datetime
import json
import math

import pytest

from core.errors import UsageError
from core.gpu import FakeGpuProbe, Gpu, GpuReading
from core.settings import load_settings
from core.status import write_status
from core.verdicts import all_verdicts
from monitoring.reports.facts import gather, since_when
from monitoring.reports.impact import by_generator, impacts
from monitoring.reports.records import Judgement, events, held_out_curve, judgements, lines, steps
from monitoring.reports.text import headline, render_text

NOW = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "2026-11-21T12:00"),
        ("24h", "2026-11-21T12:00"),
        ("90m", "2026-11-22T10:30"),
        ("7d", "2026-11-15T12:00"),
        ("2w", "2026-11-08T12:00"),
        ("2026-11-01", "2026-11-01"),
        ("2026-11-01T10:00:00Z", "2026-11-01T10:00"),
        ("2026-11-01T10:00:00+02:00", "2026-11-01T08:00"),
    ],
)
def test_a_period_is_given_as_people_say_it(text, expected):
    if text == "2026-11-01":  # a local midnight: the machine's time zone decides the hour
        assert since_when(text, NOW)[:7] in ("2026-11", "2026-10")
    else:
        assert since_when(text, NOW).startswith(expected)


@pytest.mark.parametrize("text", ["yesterday", "", "h", "-3d", "3y", "999999999999999999999d\n"])
def test_what_is_no_time_is_refused_with_examples(text):
    with pytest.raises(UsageError) as refused:
        since_when(text, NOW)
    assert "24h" in refused.value.fix


def test_a_very_long_period_reaches_back_as_far_as_time_goes():
    assert since_when("99999999999d", NOW) < "1950"


def log_steps(workspace, losses, job="j", first=1):
    path = workspace.metrics_file("main")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for step, loss in enumerate(losses, first):
            doc = {"step": step, "job_id": job, "loss": loss, "trained_tokens": 10, "time": "2026-11-22T10:00:00Z"}
            file.write(json.dumps(doc) + "\n")


def test_steps_that_were_taken_back_are_void(workspace):
    log_steps(workspace, [3.0, 2.9, 2.8, 2.7, 2.6])
    log_steps(workspace, [1.8, 1.7], first=3)
    assert [(one["step"], one["loss"]) for one in steps(workspace, "main")] == [(1, 3.0), (2, 2.9), (3, 1.8), (4, 1.7)]


def test_damaged_lines_are_left_out(workspace):
    log_steps(workspace, [3.0])
    with workspace.metrics_file("main").open("ab") as file:
        file.write(b'{"step": 2, "los\n[]\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"step": "3", "loss": 1}\n{"step": 4}\n')
    assert len(steps(workspace, "main")) == 1
    assert list(lines(workspace.root / "missing")) == []


def scored(step, losses, suite="incoming"):
    items = {(suite, name): (2 * loss, 2.0) for name, loss in losses.items()}
    return Judgement(f"{step}-aaaaaaaaaaaa", step, {}, items, frozenset({"incoming"}))


def test_the_held_out_curve_compares_the_same_rows_only():
    first = {f"a{n}": 3.0 for n in range(40)}
    later = {f"a{n}": 2.0 for n in range(40)} | {f"b{n}": 9.0 for n in range(40)}
    assert held_out_curve([scored(0, first), scored(5, later)]) == [(0, 3.0), (5, 2.0)]


def test_commits_that_share_too_few_rows_with_the_newest_are_left_out():
    old = {f"old{n}": 1.0 for n in range(40)}
    new = {f"new{n}": 2.0 for n in range(40)}
    assert held_out_curve([scored(0, old), scored(5, new), scored(9, new)]) == [(5, 2.0), (9, 2.0)]
    assert held_out_curve([]) == []


def manifest(step, *files):
    jobs = [{"file": file, "generator": generator} for file, generator in files]
    return {"id": f"{step}-aaaaaaaaaaaa", "jobs": jobs}


def test_each_file_is_charged_with_what_happened_since_the_commit_before():
    judged = [scored(0, {"x": 3.0}), scored(5, {"x": 2.0}), scored(9, {"x": 2.5, "y": 1.0})]
    chain = [manifest(0), manifest(5, ("good.jsonl", "syllo_local")), manifest(9, ("bad.jsonl", "manual"))]
    found = impacts(judged, chain)
    assert [(one.files, dict(one.gains)) for one in found] == [
        ((("good.jsonl", "syllo_local"),), {"incoming": 1.0}),
        ((("bad.jsonl", "manual"),), {"incoming": -0.5}),
    ]
    assert by_generator(found) == [("syllo_local", 1, 1.0), ("manual", 1, -0.5)]


def test_files_between_two_judged_commits_share_their_effect():
    judged = [scored(0, {"x": 3.0}), scored(9, {"x": 1.0})]
    chain = [manifest(0), manifest(5, ("a.jsonl", "manual")), manifest(9, ("b.jsonl", "curriculum"))]
    (one,) = impacts(judged, chain)
    assert one.files == (("a.jsonl", "manual"), ("b.jsonl", "curriculum"))
    assert sorted(by_generator([one])) == [("curriculum", 1, 1.0), ("manual", 1, 1.0)]


def test_right_answers_count_upwards():
    def answers(step, right):
        items = {("exam", str(n)): (float(n < right), 1.0) for n in range(10)}
        return Judgement(f"{step}-aaaaaaaaaaaa", step, {}, items, frozenset())

    (one,) = impacts([answers(0, 2), answers(5, 7)], [manifest(0), manifest(5, ("a.jsonl", "manual"))])
    assert one.gains["exam"] == pytest.approx(0.5)


def evaluate(workspace, step, loss, **metrics):
    folder = workspace.evaluation_dir("main", f"{step}-aaaaaaaaaaaa")
    folder.mkdir(parents=True)
    rows = [{"suite": "incoming", "id": str(n), "nll": 2 * loss, "tokens": 2, "score": None} for n in range(40)]
    text = "\n".join(json.dumps(doc) for doc in [{"schema": "samples.v1"}, *rows])
    (folder / "samples.jsonl").write_text(text)
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics))


def test_the_base_counts_though_it_was_never_judged_itself(workspace):
    evaluate(workspace, 0, 3.0)
    value = {"metric": "loss", "n": 40, "value": 2.0, "ci95": [1.9, 2.1], "role": "primary"}
    evaluate(workspace, 10, 2.0, suites={"incoming": value})
    evaluate(workspace, 9, 2.5, suites={"incoming": value})
    judged = judgements(workspace, "main")
    assert [one.step for one in judged] == [0, 9, 10]
    assert held_out_curve(judged) == [(0, 3.0), (9, 2.5), (10, 2.0)]


@pytest.fixture
def report(workspace, sample):
    """The report of a working day with more that happened in it."""
    log_steps(workspace, [5 * math.exp(-n / 400) + 0.5 for n in range(200)], first=9000)
    sample.job("rejected", "<b>x</b>\u202e.jsonl", code="bad_json", message="line 3: trailing comma")
    settings = load_settings(workspace, ["report.price_per_hour=2", "report.currency=USD"], env={})
    return gather(workspace, settings, FakeGpuProbe(), "2000-01-01T00:00:00Z")


def test_a_report_is_a_strict_json_document(report):
    json.dumps(report, allow_nan=False)


def test_a_report_counts_files_and_names_why_they_were_refused(report):
    reasons = {one["code"]: one for one in report["files"]["refused"]}
    assert reasons["bad_json"]["files"] >= 1
    assert any("trailing comma" in e["message"] for e in reasons["bad_json"]["examples"])
    assert report["files"]["ended"]["rejected"] >= 1


def test_names_of_files_are_spelled_so_that_nothing_hides_in_them(report):
    assert "\u202e" not in render_text(report)


def test_a_price_makes_a_cost_and_none_makes_none(report, workspace):
    seconds = report["training"]["seconds"]
    assert report["cost"]["amount"] == pytest.approx(2 * seconds / 3600, abs=1e-3)
    assert report["cost"]["currency"] == "USD"
    plain = gather(workspace, load_settings(workspace, env={}), FakeGpuProbe(), "2000-01-01T00:00:00Z")
    assert plain["cost"] is None


def test_nothing_before_the_period_is_counted(workspace, sample):
    sample.job("done", "old.jsonl", finished_at="2001-01-01T00:00:00Z", training={"seconds": 50, "rows_trained": 7})
    settings = load_settings(workspace, env={})
    everything = gather(workspace, settings, FakeGpuProbe(), "2000-01-01T00:00:00Z")
    nothing = gather(workspace, settings, FakeGpuProbe(), "2999-01-01T00:00:00Z")
    assert everything["training"]["row_passes"] >= 7
    assert nothing["files"]["ended"] == {}
    assert nothing["training"]["row_passes"] == nothing["training"]["steps"] == 0
    assert nothing["deployments"] == []


def test_an_empty_root_has_a_report_too(workspace):
    report = gather(workspace, load_settings(workspace, env={}), FakeGpuProbe(), "2000-01-01T00:00:00Z")
    assert headline(report).startswith("Dropforge dropforge-tiny: 0 files trained")
    assert "nothing was judged yet" in render_text(report)
    json.dumps(report, allow_nan=False)


def test_a_loss_that_is_not_finite_is_told_and_drawn_as_a_gap(workspace):
    log_steps(workspace, [3.0, 2.9, float("nan"), None])
    report = gather(workspace, load_settings(workspace, env={}), FakeGpuProbe(), "2000-01-01T00:00:00Z")
    assert report["curve"]["finding"]["kind"] == "instability"
    assert report["curve"]["train"] == [(1, 3.0), (2, 2.9), (3, None), (4, None)]
    assert "instability" in report["recommendations"][0]
    json.dumps(report, allow_nan=False)


def test_a_serving_checkpoint_below_the_best_on_a_guard_is_named(workspace):
    value = {"metric": "accuracy", "n": 100, "value": 0.4, "ci95": [0.3, 0.5], "role": "guard"}
    evaluate(workspace, 5, 2.0, suites={"easy": value})
    best = {"easy": {"id": "3-aaaaaaaaaaaa", "value": 0.6, "drop_since": 0.2}}
    write_status(workspace.status_file("leaderboard.json"), {"serving": None, "candidates": [], "best": best})
    report = gather(workspace, load_settings(workspace, env={}), FakeGpuProbe(), "2000-01-01T00:00:00Z")
    assert any("guard easy" in line for line in report["recommendations"])
    assert "easy [accuracy, n=100]" in render_text(report)
    evaluate(workspace, 6, 2.0, suites={"easy": value | {"n": 25, "of": 100}})
    part = gather(workspace, load_settings(workspace, env={}), FakeGpuProbe(), "2000-01-01T00:00:00Z")
    assert "easy [accuracy, n=25 of 100]" in render_text(part)


def test_deployments_come_from_the_daemons_notes(workspace):
    notes = [
        {"time": "2026-11-22T10:00:00Z", "kind": "deployed", "checkpoint": "5-a", "message": "5-a is published"},
        {"time": "2026-11-22T11:00:00Z", "kind": "deploy_failed", "checkpoint": "6-a", "message": "6-a was not"},
        {"time": "2026-11-22T11:30:00Z", "kind": "started"},
    ]
    workspace.status_file("events.jsonl").write_text("\n".join(map(json.dumps, notes)))
    report = gather(workspace, load_settings(workspace, env={}), FakeGpuProbe(), "2026-11-22T10:30:00Z")
    assert [(one["checkpoint"], one["ok"]) for one in report["deployments"]] == [("6-a", False)]
    assert len(events(workspace)) == 3
    assert any("6-a was not" in line for line in report["recommendations"])


def test_the_run_costs_what_all_its_files_cost_and_the_period_what_ended_in_it(workspace, sample):
    for name, ended_at, seconds in (("old", "2026-11-01T00:00:00Z", 3600), ("new", "2026-11-22T00:00:00Z", 1800)):
        training = {"first_step": 1, "last_step": 2, "rows_trained": 1, "tokens_trained": 1, "seconds": seconds}
        sample.job("done", f"{name}.jsonl", finished_at=ended_at, training=training)
    settings = load_settings(workspace, ["report.price_per_hour=2"], env={})
    before = sum(float(v["training"]["seconds"]) for v in verdicts_with_training(workspace)) - 5400
    report = gather(workspace, settings, FakeGpuProbe(), "2026-11-20T00:00:00Z")
    assert report["cost"]["run_amount"] == pytest.approx(2 * (5400 + before) / 3600, abs=1e-3)
    assert report["cost"]["amount"] < report["cost"]["run_amount"]
    assert "EUR for the" in render_text(report)


def verdicts_with_training(workspace):
    return [v for v in all_verdicts(workspace) if isinstance(v.get("training"), dict)]


def test_a_file_that_was_learned_by_heart_is_named_with_the_step_to_stop_at(workspace, sample):
    job = sample.job("done", "few.jsonl")
    path = workspace.metrics_file("main")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for step in range(1, 201):
            doc = {"step": 9000 + step, "job_id": job["job_id"], "loss": 5 * math.exp(-step / 60), "trained_tokens": 10}
            if step % 20 == 0:  # falls until step 80, then rises
                doc["validation_loss"] = 3.0 + abs(step - 80) / 60
            file.write(json.dumps(doc) + "\n")
    report = gather(workspace, load_settings(workspace, env={}), FakeGpuProbe(), "2000-01-01T00:00:00Z")
    (found,) = [one for one in report["jobs"] if one["file"] == "few.jsonl"]
    assert (found["kind"], found["recommendation"]) == ("overfitting", "stop at step 9080, or train on more data")
    assert any("few.jsonl shows overfitting" in line and "step 9080" in line for line in report["recommendations"])


def test_how_long_was_trained_is_told_beside_what_a_gpu_does_at_that_moment(report):
    probe = FakeGpuProbe(GpuReading((Gpu("GPU-1", "Card", utilization_percent=37.0),)))
    report["gpu"] = probe.read().as_dict()
    shown = render_text(report)
    assert "37 % busy when this report was made" in shown
    hours = report["training"]["seconds"] / 3600
    assert f"Training ran {hours:.2f} of " in shown
