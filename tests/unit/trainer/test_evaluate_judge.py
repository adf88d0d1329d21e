"""Whole judgements with a scorer made by hand: what is written, reused and decided. No torch."""

import json

import jsonschema
import pytest

from core.atomic import read_json
from core.errors import NotFoundError
from core.paths import schema_file
from judge_farm import JOBS, FakeScorer, Farm
from trainer.evaluate.judge import Judge
from trainer.evaluate.leaderboard import Leaderboard
from trainer.evaluate.side_by_side import render, side_by_side


@pytest.fixture
def farm(workspace):
    return Farm(workspace)


@pytest.fixture(autouse=True)
def _only_own_suites(monkeypatch):
    """The shipped suites are tested elsewhere; here every number is chosen by hand."""
    monkeypatch.setattr("core.paths.Workspace.suites_dirs", lambda self: [self.own_suites_dir])


def test_a_better_checkpoint_is_promoted_over_the_base(farm):
    farm.hold_out(JOBS[0], 100)
    better = farm.commit(5, JOBS[0], 2.0)
    doc = farm.judge(better, farm.base)
    assert doc["decision"] == "promote"
    assert doc["p_value"] < 0.001
    effect = doc["effect"]["incoming"]
    assert effect["delta"] == effect["after"] - effect["before"] == pytest.approx(-1.0, abs=0.1)
    assert effect["ci95"][0] < effect["delta"] < effect["ci95"][1] < 0
    assert (effect["better"], doc["regressed"]) == ("lower", False)
    assert doc["validation_loss"] == doc["suites"]["incoming"]["value"] == pytest.approx(2.05, abs=0.05)


def test_the_leaderboard_follows_its_schema_and_keeps_earlier_candidates(farm):
    farm.hold_out(JOBS[0], 100)
    farm.judge(farm.base)
    better = farm.commit(5, JOBS[0], 2.0)
    farm.judge(better, farm.base)
    worse = farm.commit(9, JOBS[1], 2.5)
    farm.judge(worse, better, superseded=["7-aaaaaaaaaaaa"])
    board = farm.leaderboard()
    jsonschema.validate(board, read_json(schema_file("leaderboard")))
    assert [c["decision"] for c in board["candidates"]] == ["no_baseline", "promote", "superseded", "keep"]
    assert board["serving"] == better.id


def test_a_checkpoint_that_is_no_better_is_kept(farm):
    farm.hold_out(JOBS[0], 100)
    doc = farm.judge(farm.commit(5, JOBS[0], 3.0), farm.base)
    assert (doc["decision"], doc["regressed"]) == ("keep", False)


def test_a_checkpoint_that_is_clearly_worse_is_named_so(farm):
    farm.hold_out(JOBS[0], 100)
    doc = farm.judge(farm.commit(5, JOBS[0], 3.2), farm.base)
    assert (doc["decision"], doc["regressed"]) == ("keep", True)


def test_the_base_against_nothing_has_no_baseline_and_is_promoted(farm):
    doc = farm.judge(farm.base)
    assert (doc["decision"], doc["promote"], doc["p_value"]) == ("no_baseline", True, None)


def test_few_held_out_rows_are_no_baseline(farm):
    farm.hold_out(JOBS[0], 29)
    doc = farm.judge(farm.commit(5, JOBS[0], 9.0), farm.base)
    assert (doc["decision"], doc["promote"]) == ("no_baseline", True)
    assert "29" in doc["reason"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_never_promoted(farm, loss):
    farm.hold_out(JOBS[0], 5)
    broken = farm.commit(5, JOBS[0], loss)
    for serving in (farm.base, None):
        doc = farm.judge(broken, serving)
        assert (doc["decision"], doc["promote"], doc["validation_loss"]) == ("keep", False, None)
    jsonschema.validate(farm.leaderboard(), read_json(schema_file("leaderboard")))


def test_rows_of_files_that_the_candidate_never_saw_do_not_count(farm):
    farm.hold_out(JOBS[0], 40)
    farm.hold_out(JOBS[1], 60, start=100)
    doc = farm.judge(farm.commit(5, JOBS[0], 2.0), farm.base)
    assert doc["suites"]["incoming"]["n"] == 40


def test_a_row_that_two_files_hold_out_counts_once(farm):
    farm.hold_out(JOBS[0], 40)
    farm.hold_out(JOBS[1], 40, start=20)
    farm.commit(5, JOBS[0], 2.5)
    assert farm.judge(farm.commit(9, JOBS[1], 2.0), farm.base)["suites"]["incoming"]["n"] == 60


def test_only_new_rows_are_scored_again(farm):
    farm.hold_out(JOBS[0], 50)
    first = farm.commit(5, JOBS[0], 2.0)
    farm.judge(first, farm.base)
    farm.hold_out(JOBS[1], 30, start=100)
    farm.loads.clear()
    second = farm.commit(9, JOBS[1], 1.0)
    farm.judge(second, first)
    twice = 32  # a candidate scores some items a second time, for its noise floor
    assert farm.scorers[first.id].rows_scored == 80 + twice
    assert farm.scorers[second.id].rows_scored == 80 + twice
    farm.loads.clear()
    samples = farm.workspace.evaluation_dir("main", second.id) / "samples.jsonl"
    written = samples.stat().st_ino
    farm.judge(second, first)
    assert farm.loads == []
    assert samples.stat().st_ino == written


def test_a_gain_smaller_than_the_checkpoints_own_noise_is_none(farm):
    farm.hold_out(JOBS[0], 100)
    unsteady = farm.commit(5, JOBS[0], 2.99, jitter=0)
    farm.scorers[farm.base.id] = FakeScorer(lambda text: 3.0, str)
    steady = FakeScorer(lambda text: 2.99, str)
    assert farm.judge(unsteady, farm.base)["decision"] == "promote"
    farm.workspace.status_file("leaderboard.json").unlink()
    for name in ("samples.jsonl", "metrics.json"):
        (farm.workspace.evaluation_dir("main", unsteady.id) / name).unlink()
    calls = iter(range(10))
    steady.losses = lambda rows: [
        (2 * 2.99 + (0 if drift == 0 else 0.05), 2) for drift in [next(calls)] for _row in rows
    ]
    farm.scorers[unsteady.id] = steady
    doc = farm.judge(unsteady, farm.base)
    assert doc["comparisons"]["incoming"]["noise"] == pytest.approx(0.025)
    assert doc["decision"] == "keep"


def test_judging_twice_gives_the_same_bytes(farm):
    farm.hold_out(JOBS[0], 60)
    better = farm.commit(5, JOBS[0], 2.9)
    samples = farm.workspace.evaluation_dir("main", better.id) / "samples.jsonl"
    docs, files = [], []
    for _ in range(2):
        docs.append(farm.judge(better, farm.base))
        files.append(samples.read_bytes())
        samples.unlink()
    changing = {"judged_at", "seconds", "scoring_seconds", "items_reused"}
    assert files[0] == files[1]
    assert {k: v for k, v in docs[0].items() if k not in changing} == {
        k: v for k, v in docs[1].items() if k not in changing
    }


def test_samples_of_another_environment_or_damaged_ones_are_scored_again(farm):
    farm.hold_out(JOBS[0], 30)
    one = farm.commit(5, JOBS[0], 2.0)
    farm.judge(one, farm.base)
    samples = farm.workspace.evaluation_dir("main", one.id) / "samples.jsonl"
    whole = samples.read_text()
    for damaged in (whole.replace('"format": 1', '"format": 0', 1), whole[: len(whole) // 2], "[]\n", "7", ""):
        samples.write_text(damaged)
        farm.loads.clear()
        farm.judge(one, farm.base)
        assert farm.loads == [one.id]
        assert samples.read_text() == whole


def test_an_added_suite_decides_in_place_of_incoming(farm):
    farm.hold_out(JOBS[0], 100)
    farm.add_suite("exam")
    worse_loss_right_answers = farm.commit(5, JOBS[0], 4.0, answer="right")
    doc = farm.judge(worse_loss_right_answers, farm.base)
    assert doc["decision"] == "promote"
    assert doc["comparisons"]["incoming"]["role"] == "report"
    assert doc["accuracy_percent"] == 100
    assert doc["flips"]["exam"]["gained"] == 40
    assert doc["eval_samples"] == [{"answer_matches": True}] * 40
    assert doc["recent_examples"][0] == {
        "prompt": "exam 0",
        "golden_answer": "right",
        "model_answer": "right",
        "matches": True,
    }


def test_a_guard_that_falls_keeps_the_old_checkpoint(farm):
    farm.hold_out(JOBS[0], 100)
    farm.add_suite("manners", role="guard", tolerance=0.05)
    polite = farm.commit(5, JOBS[0], 2.0, answer="right")
    farm.judge(polite, farm.base)
    rude = farm.commit(9, JOBS[0], 1.0)
    doc = farm.judge(rude, polite)
    assert (doc["decision"], doc["regressed"]) == ("keep", True)
    assert "manners" in doc["reason"]
    best = farm.leaderboard()["best"]["manners"]
    assert (best["id"], best["value"], best["drop_since"]) == (polite.id, 1.0, 0.0)


def test_the_drop_since_the_best_ever_is_on_the_leaderboard_and_the_base_counts(farm):
    farm.hold_out(JOBS[0], 100)
    farm.add_suite("manners", role="guard", tolerance=1.0)
    farm.scorers[farm.base.id] = FakeScorer(lambda text: 3.0, lambda prompt: "right")
    rude = farm.commit(5, JOBS[0], 1.0)
    assert farm.judge(rude, farm.base)["decision"] == "promote"
    farm.judge(rude, rude, only="incoming")
    best = farm.leaderboard()["best"]["manners"]
    assert (best["id"], best["value"], best["drop_since"]) == (farm.base.id, 1.0, 1.0)
    farm.judge(farm.commit(6, JOBS[0], 0.5), rude)
    assert farm.leaderboard()["best"]["manners"]["id"] == farm.base.id, "later candidates do not hide it"


def test_each_failed_try_against_the_same_checkpoint_makes_the_next_one_harder(farm):
    farm.hold_out(JOBS[0], 100)
    looks = []
    for step in (5, 6, 7):
        doc = farm.judge(farm.commit(step, JOBS[0], 3.0), farm.base)
        looks.append((doc["look"], round(doc["alpha"], 5)))
    assert looks == [(1, 0.025), (2, 0.00833), (3, 0.00417)]
    again = farm.judge(farm.catalogue.get("7"), farm.base)
    assert again["look"] == 3
    better = farm.commit(8, JOBS[0], 1.0)
    assert farm.judge(better, farm.base)["look"] == 4
    assert farm.judge(farm.commit(9, JOBS[0], 1.0), better)["look"] == 1


def test_a_lost_leaderboard_is_rebuilt_and_no_look_is_forgotten(farm):
    farm.hold_out(JOBS[0], 100)
    for step in (5, 6):
        farm.judge(farm.commit(step, JOBS[0], 3.0), farm.base)
    whole = farm.leaderboard()
    farm.workspace.status_file("leaderboard.json").unlink()
    doc = farm.judge(farm.commit(7, JOBS[0], 3.0), farm.base)
    assert doc["look"] == 3
    assert farm.leaderboard()["candidates"][:2] == whole["candidates"]


def test_scoring_one_suite_by_hand_decides_nothing(farm):
    farm.hold_out(JOBS[0], 100)
    farm.add_suite("exam")
    one = farm.commit(5, JOBS[0], 2.0, answer="right")
    farm.judge(one, farm.base)
    before = farm.leaderboard()["candidates"][0]
    farm.judge(one, one, only="incoming")
    after = farm.leaderboard()["candidates"][0]
    assert (after["decision"], after["p_value"], after["reason"]) == ("promote", before["p_value"], before["reason"])
    assert after["suites"].keys() == {"exam", "incoming"}


def test_scoring_one_suite_by_hand_keeps_what_is_known_of_the_others(farm):
    farm.hold_out(JOBS[0], 100)
    farm.add_suite("exam")
    one = farm.commit(5, JOBS[0], 2.0)
    farm.judge(one, farm.base)
    farm.add_suite("second")
    farm.judge(one, farm.base, only="second")
    samples = farm.workspace.evaluation_dir("main", one.id) / "samples.jsonl"
    suites = [json.loads(line).get("suite") for line in samples.read_text().splitlines()]
    assert {name: suites.count(name) for name in set(suites)} == {None: 1, "incoming": 100, "exam": 40, "second": 40}
    farm.loads.clear()
    farm.judge(one, farm.base)
    assert farm.loads == []


def test_scoring_one_suite_by_hand_of_an_unjudged_commit_leaves_it_unjudged(farm):
    farm.hold_out(JOBS[0], 100)
    one = farm.commit(5, JOBS[0], 2.0)
    doc = farm.judge(one, farm.base, only="incoming")
    assert "decision" not in doc
    assert doc["suites"]["incoming"]["n"] == 100
    assert farm.leaderboard()["candidates"] == []
    assert farm.judge(one, farm.base)["decision"] == "promote"


def test_the_serving_checkpoint_is_never_promoted_over_itself(farm):
    assert farm.judge(farm.base, farm.base)["decision"] == "keep"


def test_a_serving_checkpoint_taken_back_by_rewind_is_still_the_baseline(farm):
    farm.hold_out(JOBS[0], 100)
    served = farm.commit(5, JOBS[0], 1.0)
    farm.catalogue.undo_after(farm.base.id)
    doc = farm.judge(farm.commit(6, JOBS[0], 2.0), served)
    assert doc["decision"] == "keep"
    assert doc["comparisons"]["incoming"]["before"] == pytest.approx(1.05, abs=0.05)


def test_a_serving_checkpoint_that_is_gone_leaves_no_baseline(farm):
    farm.hold_out(JOBS[0], 100)
    served = farm.commit(5, JOBS[0], 1.0)
    newer = farm.commit(6, JOBS[0], 2.0)
    farm.catalogue.remove(served)
    doc = farm.judge(newer, served)
    assert doc["decision"] == "no_baseline"
    assert served.id in doc["reason"]


def test_an_unknown_candidate_is_named(farm):
    with pytest.raises(NotFoundError, match="99-"):
        Judge(farm.workspace, farm.settings, farm.bench()).judge("99-aaaaaaaaaaaa", None)


def test_a_failed_deployment_takes_the_promotion_back(farm):
    farm.hold_out(JOBS[0], 100)
    better = farm.commit(5, JOBS[0], 2.0)
    farm.judge(better, farm.base)
    folder = farm.workspace.evaluation_dir("main", better.id)
    (folder / "deploy.json").write_text(json.dumps({"ok": False, "error": "canary: NaN logits"}))
    board = Leaderboard(farm.workspace, "main")
    board.mark_failed_gates()
    board.save()
    entry = farm.leaderboard()["candidates"][0]
    assert entry["decision"] == "failed_gate"
    assert "canary" in entry["reason"]
    (folder / "deploy.json").write_text(json.dumps({"ok": True}))
    board.mark_failed_gates()
    assert board.entries[0]["decision"] == "promote"
    assert "canary" not in board.entries[0]["reason"]


def test_compare_names_the_better_one_whichever_side_it_stands_on(farm):
    farm.hold_out(JOBS[0], 100)
    better = farm.commit(5, JOBS[0], 2.0)
    judge = Judge(farm.workspace, farm.settings, farm.bench())
    for pair in ([farm.base.id, better.id], [better.id, farm.base.id]):
        doc = side_by_side(farm.workspace, farm.settings, judge, farm.bench(), pair, None)
        assert doc["winner"] == better.id
    assert render(doc).splitlines()[-1] == f"winner: {better.id} (significantly better on incoming)"
    broken = farm.commit(7, JOBS[0], float("nan"))
    doc = side_by_side(farm.workspace, farm.settings, judge, farm.bench(), [broken.id, better.id], None)
    assert doc["winner"] == better.id
    same = farm.commit(8, JOBS[0], 2.0)
    doc = side_by_side(farm.workspace, farm.settings, judge, farm.bench(), [better.id, same.id], None)
    assert doc["winner"] is None
    assert "no decision" in doc["reason"]
    assert not farm.workspace.status_file("leaderboard.json").exists()


def test_compare_shows_items_that_flipped_and_lets_no_answer_steer_the_terminal(farm):
    farm.hold_out(JOBS[0], 100)
    farm.add_suite("exam")
    wise = farm.commit(5, JOBS[0], 2.0, answer="right")
    farm.scorers[farm.base.id] = FakeScorer(lambda text: 3.0, lambda prompt: "\x1b[2J\u202e" + "wrong " * 50)
    judge = Judge(farm.workspace, farm.settings, farm.bench())
    shown = render(side_by_side(farm.workspace, farm.settings, judge, farm.bench(), [farm.base.id, wise.id], None))
    (first,) = [line for line in shown.splitlines() if '"exam-0"' in line]
    assert first.startswith('    gained "exam-0": expected "right", a "')
    assert first.endswith('…, b "right"')
    assert shown.count('gained "exam-') == 2
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_a_suite_compared_by_name_decides_even_when_it_is_a_guard(farm):
    farm.hold_out(JOBS[0], 100)
    farm.add_suite("manners", role="guard")
    polite = farm.commit(5, JOBS[0], 2.0, answer="right")
    judge = Judge(farm.workspace, farm.settings, farm.bench())
    pair = [farm.base.id, polite.id]
    assert side_by_side(farm.workspace, farm.settings, judge, farm.bench(), pair, "manners")["winner"] == polite.id


def test_what_is_promoted_is_not_called_worse_for_a_drop_within_the_tolerance(farm):
    farm.hold_out(JOBS[0], 100)
    farm.add_suite("exam")
    farm.add_suite("manners", role="primary", tolerance=1.0)
    farm.scorers[farm.base.id] = FakeScorer(lambda text: 3.0, lambda prompt: "right" if "manners" in prompt else "no")
    doc = farm.judge(farm.commit(5, JOBS[0], 2.0, answer=lambda p: "right" if "exam" in p else "no"), farm.base)
    assert (doc["decision"], doc["regressed"]) == ("promote", False)
