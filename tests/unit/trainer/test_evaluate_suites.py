"""Suites: the shipped ones, ones a user adds, and the live one."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError, StorageError
from core.paths import builtin_config
from curriculum.generators.binary import OPERATIONS, draw
from scripts import gsm8k_suite
from scripts.make_suites import TIERS, write_tier
from trainer.evaluate.graders import grade
from trainer.evaluate.suites import INCOMING, deciding, incoming_suite, load_suite, load_suites, parse_item, thinned


@pytest.fixture
def suite(tmp_path):
    """suite(items, **fields) writes a suite folder and returns it."""

    def write(items, **fields):
        folder = tmp_path / "exam"
        folder.mkdir(exist_ok=True)
        (folder / "suite.json").write_text(json.dumps({"name": "exam", "version": 1, **fields}))
        (folder / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
        return folder

    return write


ITEM = {"id": "1", "prompt": "Say yes.", "expected": "yes"}


@pytest.mark.parametrize("name", sorted(TIERS))
def test_the_shipped_suites_are_what_their_seeds_give(name, tmp_path):
    write_tier(name, tmp_path / name)
    shipped = builtin_config() / "suites" / name
    for file in ("suite.json", "items.jsonl"):
        assert (tmp_path / name / file).read_bytes() == (shipped / file).read_bytes()


def test_the_shipped_suites_are_three_guards_of_a_hundred_different_questions(workspace):
    suites = load_suites(workspace)
    assert {(s.name, s.role, len(s.items)) for s in suites} == {(n, "guard", 100) for n in ("easy", "medium", "hard")}
    prompts = [item.prompt[-1]["content"] for s in suites for item in s.items]
    assert len(set(prompts)) == 300


def test_no_generator_of_training_data_can_ask_a_shipped_question(workspace):
    prompts = {item.prompt[-1]["content"] for s in load_suites(workspace) for item in s.items}
    made = {p.question["content"] for op in OPERATIONS for p in draw(op, range(1, 200), range(1, 4), count=200, seed=1)}
    assert not prompts & made
    assert all(question.startswith("Compute: ") for question in made)
    assert not any(prompt.startswith("Compute: ") for prompt in prompts)


def test_every_expected_answer_of_the_shipped_suites_is_right_by_its_own_grader(workspace):
    for item in (item for s in load_suites(workspace) for item in s.items):
        if item.grader == "multiple_choice":
            assert item.expected in item.choices
        elif item.grader == "regex":
            assert {grade("regex", answer, item.expected) for answer in ("Yes.", "no")} == {0, 1}
        elif item.grader == "json_schema":
            fields = {name: rule["const"] for name, rule in item.expected["properties"].items()}
            assert grade("json_schema", json.dumps(fields), item.expected) == 1
        else:
            answer = item.expected[0] if isinstance(item.expected, list) else item.expected
            assert grade(item.grader, answer, item.expected) == 1


def test_a_suite_of_the_root_replaces_a_shipped_one_of_its_name(workspace, suite):
    folder = workspace.own_suites_dir / "easy"
    folder.parent.mkdir(parents=True)
    suite([ITEM]).rename(folder)
    (folder / "suite.json").write_text('{"name": "easy"}')
    found = {s.name: s for s in load_suites(workspace)}
    assert (len(found["easy"].items), found["easy"].role) == (1, "primary")
    assert len(found) == 3


def test_a_suite_being_put_into_place_is_not_read(workspace):
    (workspace.own_suites_dir / ".incoming-exam").mkdir(parents=True)
    assert len(load_suites(workspace)) == 3


def test_defaults_make_a_list_of_questions_a_primary_suite(suite):
    found = load_suite(suite([ITEM]))
    assert (found.metric, found.role, found.tolerance, found.max_new_tokens) == ("exact_match", "primary", 0.0, None)
    assert found.items[0].row["messages"][-1] == {"role": "assistant", "content": "yes"}


def test_an_item_with_half_a_character_is_refused_with_its_line(suite):
    with pytest.raises(ConfigError, match=r"items.jsonl:1: .*surrogate"):
        load_suite(suite([{**ITEM, "prompt": "\ud800"}]))


@pytest.mark.parametrize(
    ("items", "fields", "named"),
    [
        ([], {}, "no items"),
        ([ITEM, ITEM], {}, "twice"),
        ([{**ITEM, "answer": 1}], {}, "answer"),
        ([{"id": "1", "expected": "a"}], {}, "asks nothing"),
        ([{"id": "1", "prompt": "a"}], {}, "expected"),
        ([{**ITEM, "grader": "vibes"}], {}, "vibes"),
        ([{**ITEM, "prompt": ""}], {}, "prompt"),
        ([{**ITEM, "prompt": 7}], {}, "prompt"),
        ([{"id": "1", "messages": [{"role": "assistant", "content": "a"}], "expected": "a"}], {}, "before the answer"),
        ([{"id": "1", "messages": ["a"], "expected": "a"}], {}, "messages"),
        ([{**ITEM, "grader": "multiple_choice", "choices": ["a", "b"]}], {}, "choices"),
        ([{**ITEM, "grader": "multiple_choice", "choices": ["yes", "yes"]}], {}, "choices"),
        ([{**ITEM, "grader": "regex"}], {"metric": "loss"}, "scored"),
        ([{**ITEM, "id": ""}], {}, "id is empty"),
        ([{**ITEM, "messages": [{"role": "user", "content": "q"}]}], {}, "messages and prompt stand side by side"),
        ([{**ITEM, "expected": ""}], {}, "expected answer is empty"),
        ([{**ITEM, "expected": []}], {}, "expected answer is empty"),
        ([{**ITEM, "expected": {"a": 1}}], {}, "needs a string"),
        ([{**ITEM, "grader": "regex", "expected": "("}], {}, "does not compile"),
        ([{**ITEM, "grader": "numeric"}], {}, "no number"),
        ([{**ITEM, "grader": "json_schema"}], {}, "JSON Schema"),
        ([{**ITEM, "tags": 5}], {}, "tags"),
        ([{**ITEM, "grader": "multiple_choice", "choices": 5}], {}, "choices"),
        ([{**ITEM, "grader": "multiple_choice", "choices": None}], {}, "choices"),
        ([{**ITEM, "grader": []}], {}, "no grader"),
        ([{**ITEM, "prompt": "a" * (1 << 20)}], {}, "bytes"),
        ([{"id": 1, "prompt": "a", "expected": "b"}, ITEM], {}, "twice"),
        ([ITEM], {"metric": "vibes"}, "metric"),
        ([ITEM], {"role": "boss"}, "role"),
        ([ITEM], {"tolerance": -1}, "tolerance"),
        ([ITEM], {"tolerance": True}, "tolerance"),
        ([ITEM], {"max_new_tokens": 0}, "max_new_tokens"),
        ([ITEM], {"max_new_tokens": 10**9}, "max_new_tokens"),
        ([ITEM], {"name": "other"}, "other"),
        ([ITEM], {"colour": "red"}, "colour"),
    ],
)
def test_a_broken_suite_is_refused_by_file_line_and_field(suite, items, fields, named):
    with pytest.raises(ConfigError, match=named) as refused:
        load_suite(suite(items, **fields))
    assert "exam" in refused.value.where
    assert refused.value.fix


def test_a_broken_item_is_named_by_its_line(suite):
    with pytest.raises(ConfigError) as refused:
        load_suite(suite([ITEM, {**ITEM, "id": "2", "grader": "regex", "expected": "[a"}]))
    assert refused.value.where.endswith("items.jsonl:2")
    assert "expected" in refused.value.message
    assert refused.value.fix


def test_the_items_of_a_guard_are_cut_into_shares_that_are_the_same_every_time_and_together_all(suite):
    items = [{**ITEM, "id": f"n{n}", "prompt": f"{n}?", "tags": ["first" if n < 20 else "second"]} for n in range(40)]
    guard = load_suite(suite(items, role="guard"))
    assert [len(shard.items) for shard in guard.shards] == [10, 10, 20]
    assert sorted(item.id for item in guard.items) == sorted(item["id"] for item in items)
    assert load_suite(suite(items[::-1], role="guard")).shards[0].items == guard.shards[0].items
    tags = {item.tags[0] for item in guard.shards[0].items}
    assert tags == {"first", "second"}, "a share is drawn from everywhere"
    part = replace(guard, asked=1)
    assert (len(part.items), part.size) == (10, 40)
    assert part.sha256 != guard.sha256
    assert [len(shard.items) for shard in load_suite(suite(items)).shards] == [40], "what decides is asked whole"


def test_another_metric_asks_something_else_so_nothing_scored_before_is_used(suite):
    assert load_suite(suite([ITEM])).shards[0].sha256 != load_suite(suite([ITEM], metric="loss")).shards[0].sha256


@pytest.mark.parametrize("line", ["{", '{"id": NaN}', "[1]", '"text"', '{"id": 1, "id": 2}'])
def test_a_line_that_is_no_json_object_is_refused(suite, line):
    folder = suite([ITEM])
    (folder / "items.jsonl").write_text(json.dumps(ITEM) + "\n" + line)
    with pytest.raises(ConfigError, match=r"items\.jsonl:2(:2)?: ") as refused:
        load_suite(folder)
    assert refused.value.fix


@pytest.mark.parametrize("file", ["suite.json", "items.jsonl"])
@pytest.mark.parametrize("what", ["missing", "a folder", "cut"])
def test_a_damaged_suite_is_a_mistake_in_the_configuration_that_names_the_file(suite, file, what):
    folder = suite([ITEM])
    (folder / file).unlink()
    if what == "a folder":
        (folder / file).mkdir()
    if what == "cut":
        (folder / file).write_text('{"name": "ex')
    with pytest.raises(ConfigError) as refused:
        load_suite(folder)
    assert refused.value.where == str(folder / file) + (":1:10" if what == "cut" else "")
    assert refused.value.message.startswith("the suite is damaged: ")


def test_a_disk_that_fails_is_not_the_suites_fault(suite, monkeypatch):
    folder = suite([ITEM])

    def fails(_path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(StorageError):
        load_suite(folder)


def test_an_unknown_suite_is_named_with_those_there_are(workspace):
    with pytest.raises(ConfigError, match="exams") as refused:
        load_suites(workspace, "exams")
    assert "easy" in refused.value.fix


def test_any_change_of_a_question_changes_the_suites_identity(suite):
    first = load_suite(suite([ITEM]))
    assert load_suite(suite([ITEM])).sha256 == first.sha256
    assert load_suite(suite([{**ITEM, "expected": "no"}])).sha256 != first.sha256
    assert load_suite(suite([ITEM], max_new_tokens=5)).shards[0].sha256 != first.shards[0].sha256


def test_gsm8k_becomes_a_suite_that_reports_and_never_decides(tmp_path):
    row = {"question": "How many are 3 and 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert gsm8k_suite.write_suite(tmp_path / "test.jsonl", tmp_path / "gsm8k", 1) == 1
    found = load_suite(tmp_path / "gsm8k")
    assert (found.role, found.metric, len(found.items)) == ("report", "accuracy", 1)
    item = found.items[0]
    assert grade(item.grader, "I think it is 7.", item.expected) == 1
    assert item.row["messages"][-1]["content"] == row["answer"]
    assert deciding([found]) == []


def hold_out(workspace, job, docs):
    folder = workspace.incoming_dir("main")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{job}.jsonl").write_text("\n".join(json.dumps(doc) for doc in docs))


def chat(n):
    turns = [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]
    return {"sha256": f"{n:064x}", "row": n, "messages": turns}


def test_the_live_suite_holds_the_rows_of_the_jobs_it_is_given(workspace):
    hold_out(workspace, "a", [chat(1), chat(2)])
    hold_out(workspace, "b", [chat(2), chat(3), {"sha256": "f" * 64, "row": 9, "text": "plain"}])
    live = incoming_suite(workspace, "main", ["a", "b", "never-held-out", "a"])
    assert (live.name, live.role, live.metric) == (INCOMING, "primary", "loss")
    assert [len(shard.items) for shard in live.shards] == [2, 2]
    assert live.items[-1].row == {"text": "plain"}
    assert live.items[0].prompt == ({"role": "user", "content": "q1"},)


def test_a_new_file_leaves_the_older_shards_as_they_were_until_the_live_suite_doubles(workspace):
    hold_out(workspace, "a", [chat(n) for n in range(60)])
    before = incoming_suite(workspace, "main", ["a"]).shards[0].sha256
    hold_out(workspace, "b", [chat(n) for n in range(60, 90)])
    assert incoming_suite(workspace, "main", ["a", "b"]).shards[0].sha256 == before


def test_the_live_suite_stays_bounded_however_many_rows_are_held_out(workspace):
    hold_out(workspace, "a", [chat(n) for n in range(5000)])
    live = incoming_suite(workspace, "main", ["a"])
    assert 400 < len(live.items) <= 1000
    assert 40 < sum(item.prompt is not None for item in live.items) <= 100


def test_only_short_answers_are_asked_for_and_the_loss_is_taken_on_all(workspace):
    long = {
        "sha256": "e" * 64,
        "row": 0,
        "messages": [*chat(1)["messages"][:1], {"role": "assistant", "content": "a" * 121}],
    }
    unanswered = {"sha256": "d" * 64, "row": 1, "messages": chat(2)["messages"][:1]}
    hold_out(workspace, "a", [long, unanswered, chat(3)])
    live = incoming_suite(workspace, "main", ["a"])
    assert [item.prompt is not None for item in live.items] == [False, False, True]
    assert all(item.row for item in live.items)


def test_thinning_keeps_a_stable_share():
    names = {f"row {n}" for n in range(1000)}
    kept = thinned(names, 300)
    assert 150 < len(kept) <= 300
    assert thinned(names | {"one more"}, 300) - {"one more"} == kept
    assert thinned(names, 1000) == names
    grown = {f"{n}" for n in range(330)}  # what was chosen of the first stays until the share halves again
    first = thinned(grown, 300)
    assert thinned(grown | {f"later {n}" for n in range(200)}, 300) & grown == first


def test_added_suites_decide_and_without_them_the_live_one_does(workspace, suite):
    live = incoming_suite(workspace, "main", [])
    guards = load_suites(workspace)
    assert deciding([live, *guards]) == [live]
    added = load_suite(suite([ITEM]))
    assert deciding([live, *guards, added]) == [added]


def test_a_long_held_out_row_is_no_broken_suite(workspace):
    folder = workspace.incoming_dir("main")
    folder.mkdir(parents=True)
    turns = [{"role": "user", "content": "a" * (2 << 20)}, {"role": "assistant", "content": "b"}]
    (folder / "j.jsonl").write_text(json.dumps({"sha256": "0" * 64, "row": 1, "messages": turns}) + "\n")
    assert len(incoming_suite(workspace, "main", ["j"]).items) == 1


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("question", 'call it "prompt"'),
        ("Answer", 'call it "expected"'),
        ("expcted", 'call it "expected"'),
        ("difficulty", 'take it out, or keep it in "metadata"'),
    ],
)
def test_an_unknown_key_of_an_item_is_told_what_to_do_with_it(key, fix):
    with pytest.raises(ConfigError) as refused:
        parse_item({"prompt": "1+1", "expected": "2", key: "x"}, "items.jsonl:1", "accuracy")
    assert refused.value.message == f"unknown key {key!r}"
    assert refused.value.fix.startswith(f"{fix} (known: choices, expected, ")
