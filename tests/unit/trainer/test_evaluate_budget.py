"""How much of the guard suites a slow model is asked, and what is said of it. No torch, and a clock of our own."""

import types

import jsonschema
import pytest

from core.atomic import read_json
from core.paths import schema_file
from core.settings import load_settings
from judge_farm import JOBS, FakeScorer, Farm
from trainer.evaluate import bench as bench_module
from trainer.evaluate.decide import guards_note
from trainer.evaluate.judge import Judge
from trainer.evaluate.side_by_side import render, side_by_side

GUARDS = ("manners", "sums")


class SlowScorer(FakeScorer):
    """Takes a second an answer by the clock of the test."""

    def __init__(self, now, loss, answer):
        super().__init__(lambda text: loss, lambda prompt: answer)
        self.now = now

    def answers(self, prompts, max_new_tokens):
        self.now[0] += len(prompts)
        return super().answers(prompts, max_new_tokens)


@pytest.fixture
def farm(workspace, monkeypatch):
    """100 held-out rows, two guards of 40 items, and models that take a second an answer."""
    monkeypatch.setattr("core.paths.Workspace.suites_dirs", lambda self: [self.own_suites_dir])
    now = [0.0]
    monkeypatch.setattr(bench_module, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    farm = Farm(workspace)
    farm.hold_out(JOBS[0], 100)
    for name in GUARDS:
        farm.add_suite(name, role="guard", tolerance=0.05)
    farm.add = lambda step, loss, answer="right": slow(farm, now, step, loss, answer)
    farm.scorers[farm.base.id] = SlowScorer(now, 3.0, "right")
    return farm


def slow(farm, now, step, loss, answer):
    made = farm.commit(step, JOBS[0], loss)
    farm.scorers[made.id] = SlowScorer(now, loss, answer)
    return made


def budget(farm, seconds):
    farm.settings = load_settings(farm.workspace, [f"evaluation.budget_s={seconds}"], env={})


def asked(doc):
    return {name: (doc["suites"][name]["n"], doc["suites"][name]["of"]) for name in GUARDS}


@pytest.mark.parametrize(
    ("seconds", "share"), [(1, 10), (79, 10), (80, 20), (159, 20), (160, 40), (10_000, 40)]
)  # both models are asked: 2 guards x 2 models x 10, 20 or 40 items
def test_a_slow_model_is_asked_as_much_as_both_can_answer_in_the_budget(farm, seconds, share):
    budget(farm, seconds)
    better = farm.add(5, 2.0)
    doc = farm.judge(better, farm.base)
    assert asked(doc) == dict.fromkeys(GUARDS, (share, 40))
    assert doc["decision"] == "promote", "the suite that decides is asked whole"
    assert doc["suites"]["incoming"]["n"] == 100
    assert ("guard items asked" in doc["reason"]) == (share < 40)
    jsonschema.validate(farm.leaderboard(), read_json(schema_file("leaderboard")))


def test_both_models_are_asked_the_same_items_and_none_twice(farm):
    budget(farm, 120)
    first, second = farm.add(5, 2.0), farm.add(6, 2.5)
    farm.judge(first, farm.base)
    known = farm.scorers[farm.base.id].asked
    doc = farm.judge(second, farm.base)
    assert asked(doc) == dict.fromkeys(GUARDS, (40, 40)), "what the baseline has answered costs no time"
    assert farm.scorers[farm.base.id].asked - known == 40
    farm.judge(second, farm.base)
    assert farm.scorers[farm.base.id].asked - known == 40


def test_a_guard_that_was_asked_in_part_still_stops_a_model_that_forgot_it(farm):
    budget(farm, 1)
    doc = farm.judge(farm.add(5, 1.0, answer="wrong"), farm.base)
    assert (doc["decision"], doc["regressed"]) == ("keep", True)
    assert asked(doc) == dict.fromkeys(GUARDS, (10, 40))


def test_a_suite_asked_by_name_is_asked_whole(farm):
    budget(farm, 1)
    one = farm.add(5, 2.0)
    farm.judge(one, farm.base)
    assert farm.judge(one, farm.base, only="sums")["suites"]["sums"]["n"] == 40


def test_the_best_ever_begins_anew_when_other_items_were_asked(farm):
    budget(farm, 1)
    farm.judge(farm.add(5, 2.0), farm.base)
    assert farm.leaderboard()["best"]["sums"]["n"] == 10
    budget(farm, 1000)
    half = farm.add(6, 2.0, answer="wrong")
    farm.judge(half, farm.base)
    best = farm.leaderboard()["best"]["sums"]
    assert (best["n"], best["id"], best["value"]) == (40, farm.base.id, 1.0)


def test_compare_keeps_to_the_budget_and_says_how_many_of_how_many(farm):
    budget(farm, 1)
    one = farm.add(5, 2.0)
    judge = Judge(farm.workspace, farm.settings, farm.bench())
    doc = side_by_side(farm.workspace, farm.settings, judge, farm.bench(), [farm.base.id, one.id], None)
    assert (doc["suites"]["sums"]["a"]["n"], doc["suites"]["sums"]["of"]) == (10, 40)
    assert "n=10 of 40" in render(doc)


def test_a_reason_says_how_large_a_drop_must_be_to_show_on_so_few_items():
    assert guards_note([(100, 100), (20, 20)]) == ""
    assert guards_note([]) == ""
    # three guards share 5 %: six answers lost and none gained have p = 1/64, five have 1/32
    note = guards_note([(100, 25), (100, 25), (100, 25)])
    assert "75 of 300 guard items" in note
    assert "less than 24%" in note


def test_a_baseline_that_was_never_asked_is_what_the_time_is_measured_on(farm):
    one, other = farm.add(5, 2.0), farm.add(6, 2.5)
    farm.judge(one, farm.base)
    budget(farm, 1)
    assert asked(farm.judge(one, other)) == dict.fromkeys(GUARDS, (10, 40))
