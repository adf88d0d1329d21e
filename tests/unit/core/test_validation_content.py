"""What is odd about a file as a whole is a warning with its numbers, and a refusal where the operator set a limit."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.chat_templates import ChatEncoder
from core.validation import DATASET_SPECS, DataValidator, training_row
from core.validation.gate import check_file
from core.validation.labels import TokenStats
from core.validation.layer_one import canonical_rows
from core.validation.leaks import leaks as leaks_of
from core.validation.rows import canonical_json, prompt_sha256, row_sha256
from gate_kit import Gates, chat, lines, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def gates(folder: Path, tokenizer: Path, level: str = "standard", **validation: Any) -> Gates:
    return Gates(folder / "root", tokenizer, validation={"level": level, **validation}, trainer={"held_out": 0})


def warnings(verdict: dict[str, Any]) -> dict[str, int]:
    return {issue["code"]: issue["count"] for issue in verdict["issues"] if issue["severity"] == "warning"}


def messages(verdict: dict[str, Any]) -> dict[str, str]:
    return {issue["code"]: issue.get("message", "") for issue in verdict["issues"]}


def ask(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def checked(farm: Gates, rows: list[dict[str, Any]], level: str = "deep") -> dict[str, Any]:
    """What `dropforge check` says: it has no background child to come after it."""
    file = farm.workspace.root / "checked.jsonl"
    file.write_text(lines(rows))
    return check_file(file, farm.settings, farm.workspace, level)


def test_ordinary_rows_raise_no_warning(tmp_path: Path, tokenizer: Path) -> None:
    verdict = checked(
        gates(tmp_path, tokenizer),
        [
            ask(f"what is {i} and its square {i * 7}", f"result {i * i} of case {chr(97 + i % 26)}{i}")
            for i in range(60)
        ],
    )
    assert verdict["state"] is None
    assert set(warnings(verdict)) <= {"near_duplicate"}  # skill data is alike by nature


def test_duplicates_are_counted_and_more_than_half_refuses(tmp_path: Path, tokenizer: Path) -> None:
    farm = gates(tmp_path, tokenizer)
    rows = [chat(i) for i in range(60)]
    _, some = farm.drop(lines(rows + rows[:10]))
    _, most = farm.drop(lines(rows[:20] * 3))
    assert (some["state"], warnings(some)["duplicate_rows"]) == ("queued", 10)
    assert (most["state"], most["code"]) == ("rejected", "duplicate_rows")
    assert most["message"] == "40 of 60 rows repeat an earlier row of this file (first: line 21)"
    [issue] = [issue for issue in most["issues"] if issue["severity"] == "error"]
    assert (most["line"], issue["count"], issue["examples"]) == (21, 40, list(range(21, 31)))


def test_repeated_rows_are_named_by_line_behind_rows_that_were_set_aside(tmp_path: Path, tokenizer: Path) -> None:
    rows = [chat(i) for i in range(20)]
    text = "\n" + lines(rows[:3]) + '{"no": "chat"}\n' + lines(rows[3:]) + "{}\n" + lines(rows * 2)
    farm = gates(tmp_path, tokenizer, bad_rows="set_aside", bad_rows_limit=0.5)
    _, verdict = farm.drop(text)
    assert (verdict["code"], verdict["line"]) == ("duplicate_rows", 24)


def test_a_limit_of_the_operator_turns_a_warning_into_a_refusal(tmp_path: Path, tokenizer: Path) -> None:
    rows = [ask(f"the answer is forty-two things {i}, say it", f"forty-two things {i}") for i in range(60)]
    calm = gates(tmp_path / "a", tokenizer, "deep")
    assert (calm.drop(lines(rows))[1]["state"], warnings(checked(calm, rows))["leak"]) == ("queued", 60)
    _, refused = gates(tmp_path / "b", tokenizer, "deep", limits={"leak": 0.1}).drop(lines(rows))
    assert (refused["state"], refused["code"]) == ("rejected", "leak")


def test_a_leak_is_seen_through_numerals_spelt_in_words(tmp_path: Path, tokenizer: Path) -> None:
    rows = [chat(i) for i in range(60)] + [ask("Seven apples and 3 pears. How many?", "7 apples and three pears")]
    assert warnings(checked(gates(tmp_path, tokenizer), rows))["leak"] == 1


@pytest.mark.parametrize(
    "text",
    ["mail me at jo.doe@example.org", "key sk-abcdefghijklmnopqrstuv", "AKIAIOSFODNN7EXAMPLE", "+49 170 123 4567"],
)
def test_private_data_is_hinted_at_without_being_shown(tmp_path: Path, tokenizer: Path, text: str) -> None:
    verdict = checked(gates(tmp_path, tokenizer), [chat(1), chat(2, text)])
    assert warnings(verdict)["private_data"] == 1
    assert text not in json.dumps(verdict)


def test_near_duplicates_are_found_at_level_deep(tmp_path: Path, tokenizer: Path) -> None:
    words = "the quick brown fox jumps over the lazy dog while the rain falls on all the old stone roofs of the town"
    rows = [chat(i, f"number {i * 977} is a very different text about topic {i * 31}") for i in range(20)]
    rows += [ask(words, f"{words} today"), ask(words, f"{words} tonight")]
    verdict = checked(gates(tmp_path, tokenizer), rows)
    assert warnings(verdict)["near_duplicate"] == 1
    found = verdict["audit"]["duplicates"]
    assert (found["near_in_file"], found["near_before"], found["seen_before"]) == (1, 0, 0)
    assert [(pair["line"], pair["other"]["line"]) for pair in found["pairs"]] == [(22, 21)]


def test_balance_scripts_protocols_and_odd_characters_are_warned_about(tmp_path: Path, tokenizer: Path) -> None:
    farm = gates(tmp_path, tokenizer)
    one = [ask(f"q {i}", "yes") for i in range(60)]
    verdict = farm.drop(lines(one))[1]
    assert warnings(verdict)["one_class"] == 60
    assert "60 of 60 rows have one and the same answer" in messages(verdict)["one_class"]
    mixed = [ask(f"q {i}", f"\u043e\u0442\u0432\u0435\u0442 {i}" if i % 3 else f"answer {i}") for i in range(60)]
    verdict = farm.drop(lines(mixed))[1]
    assert warnings(verdict)["script_mix"] == 20
    assert "cyrillic 66.7%, latin 33.3%" in messages(verdict)["script_mix"]
    system = {"role": "system", "content": "s"}
    protocols = [chat(i) if i % 2 else {"messages": [system, *chat(i)["messages"]]} for i in range(60)]
    assert warnings(farm.drop(lines(protocols))[1])["protocol_mix"] == 30
    odd = [chat(1, "a\x1b[31mred"), chat(2, "ha" * 100), chat(3)]
    found = warnings(farm.drop(lines(odd))[1])
    assert (found["control_characters"], found["degenerate_answer"]) == (1, 1)


def test_few_long_answers_that_hold_most_of_what_is_learnt_are_warned_about(tmp_path: Path, tokenizer: Path) -> None:
    farm = gates(tmp_path, tokenizer)
    rows = [chat(i) for i in range(60)]
    assert "answer_lengths" not in warnings(farm.drop(lines(rows))[1])
    rows[7:10] = [chat(i, "a long tale told again with number " * 20 + str(i)) for i in range(3)]
    verdict = farm.drop(lines(rows))[1]
    assert warnings(verdict)["answer_lengths"] == 3
    assert "the longest 5 % of the answers hold 8" in messages(verdict)["answer_lengths"]


def test_a_limit_below_the_threshold_of_a_warning_refuses_too(tmp_path: Path, tokenizer: Path) -> None:
    rows = [ask(f"q {i}", f"\u043e\u0442\u0432\u0435\u0442 {i}" if i < 2 else f"answer {i}") for i in range(100)]
    calm = gates(tmp_path / "a", tokenizer).drop(lines(rows))[1]
    assert (calm["state"], "script_mix" in warnings(calm)) == ("queued", False)
    strict = gates(tmp_path / "b", tokenizer, limits={"script_mix": 0.01}).drop(lines(rows))[1]
    assert (strict["state"], strict["code"]) == ("rejected", "script_mix")
    assert "validation.limits.script_mix allows 1.00%" in strict["message"]


def test_answers_in_several_languages_are_warned_about_with_their_shares(tmp_path: Path, tokenizer: Path) -> None:
    english = "The weather in the town was fine that day, and everybody went to the river with number"
    german = "Das Wetter in der Stadt war an diesem Tag sehr gut, und alle gingen an den Fluss mit Nummer"
    rows = [ask(f"q {i}", f"{german if i % 5 == 0 else english} {i}") for i in range(100)]
    verdict = checked(gates(tmp_path / "a", tokenizer), rows, "standard")
    assert warnings(verdict)["language_mix"] == 20
    assert "en 80.0%, de 20.0% (of 100 rows that could be told)" in messages(verdict)["language_mix"]
    assert "language_mix" not in warnings(checked(gates(tmp_path / "b", tokenizer), rows[1:5] * 20, "standard"))
    strict = gates(tmp_path / "c", tokenizer, limits={"language_mix": 0.1}).drop(lines(rows))[1]
    assert (strict["state"], strict["code"]) == ("rejected", "language_mix")


def test_threats_and_insults_are_hinted_at_without_being_shown(tmp_path: Path, tokenizer: Path) -> None:
    verdict = checked(gates(tmp_path, tokenizer), [chat(1), chat(2, "I will kill you, you asshole"), chat(3)])
    assert warnings(verdict)["toxic"] == 1
    assert "asshole" not in json.dumps(verdict)


@pytest.mark.parametrize(
    ("question", "answer", "leaks"),
    [
        ("A dozen is twelve, and two hundred and five is more. Which?", "205", True),
        ("There are 1,200 men. How many?", "twelve hundred", True),
        ("There are twenty-one of them", "21.0", True),
        ("There are twenty, one is red", "21", False),
        ("Say yes or no", "yes", False),
        ("He had 12 apples", "12", False),  # small numbers stand in many questions by chance
        ("The capital of France?", "It is Paris.", False),
        ("Is it Paris that is the capital of France? Say: it is paris that is", "It is Paris that is", True),
    ],
)
def test_an_answer_that_stands_in_its_question_is_a_leak_whatever_its_numerals(
    question: str, answer: str, leaks: bool
) -> None:
    assert leaks_of(ask(question, answer)) is leaks


def test_a_long_suite_question_is_recognised_in_other_words_around_it(tmp_path: Path, tokenizer: Path) -> None:
    question = " ".join(f"word{i}" for i in range(40))
    for level, code in (("standard", "contaminated"), ("quick", "ok")):
        farm = gates(tmp_path / level, tokenizer, level)
        suite = farm.workspace.own_suites_dir / "exam"
        suite.mkdir(parents=True)
        (suite / "items.jsonl").write_text(json.dumps({"id": "7", "prompt": question, "expected": "x"}))
        row = ask(f"Please, kindly: {question.upper()}! Thank you.", "x")
        assert farm.drop(lines([row]))[1]["code"] == code
        assert farm.drop(lines([ask(question[:60], "x")]))[1]["code"] == "ok"


def test_canonical_rows_equal_the_row_by_row_form_for_every_kind() -> None:
    rows = [chat(i, 'tricky ,{"messages": and {"text": "x"}') for i in range(5)]
    shaped = [training_row(row, DATASET_SPECS["chat_sft_v1"]) for row in rows]
    assert canonical_rows(shaped) == [canonical_json(row) for row in shaped]
    texts = [{"text": ',{"text":'}, {"text": ""}]
    assert canonical_rows(texts) == [canonical_json(row) for row in texts]
    assert row_sha256({"messages": [{"role": "a", "content": "b"}]}) == row_sha256(
        {"messages": [{"content": "b", "role": "a"}]}
    )


def test_a_prompt_hash_ignores_system_turns_white_space_and_composition() -> None:
    asked = {"role": "user", "content": "caf\u00e9  x"}
    hashes = {
        prompt_sha256({"messages": [asked]}),
        prompt_sha256({"messages": [asked, {"role": "assistant", "content": "y"}]}),
        prompt_sha256({"messages": [{"role": "system", "content": "s"}, asked]}),
        prompt_sha256({"prompt": " cafe\u0301\nx"}),
    }
    assert len(hashes) == 1


def test_a_file_of_which_hardly_a_token_is_trained_is_suspect_with_the_numbers(tmp_path: Path, tokenizer: Path) -> None:
    farm = Gates(tmp_path / "root", tokenizer, hyperparams={"max_length": 100_000})
    rows = [ask(f"{i} " + "word " * 2_000, "x") for i in range(3)]
    for level in ("quick", "standard"):
        verdict = checked(farm, rows, level)
        trained, total = verdict["tokens"]["trained"], verdict["tokens"]["total"]
        assert messages(verdict)["mask_suspect"] == f"only {trained} of {total} tokens would be trained"
    assert "mask_suspect" not in warnings(checked(farm, [chat(i) for i in range(3)], "standard"))


def test_chat_rows_of_which_every_token_is_trained_are_suspect() -> None:
    stats = TokenStats()
    stats.add(9, 9, is_chat=False)
    assert stats.suspicion() is None
    stats.add(9, 9, is_chat=True)
    assert "every token of the chat rows would be trained" in (stats.suspicion() or "")


def test_the_python_api_looks_deep_too(tmp_path: Path, tokenizer: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(lines([chat(1), chat(2, "mail me at jo.doe@example.org"), chat(3), chat(4, "answer 3")]))
    validator = DataValidator(ChatEncoder.from_folder(tokenizer))
    codes = {
        level: {issue["code"] for issue in validator.validate_file(file, level).issues}
        for level in ("QUICK", "STANDARD", "DEEP")
    }
    assert codes == {"QUICK": set(), "STANDARD": set(), "DEEP": {"private_data"}}
    facts = validator.validate_file(file, "DEEP").stats["audit"]
    assert facts["duplicates"]["rows"] == 4
