"""The generator of circled binary arithmetic: right answers, seeded bytes, a suite apart from the rows."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UsageError
from curriculum.generators.binary import OPERATIONS, Problem, circled, draw, main

DIGITS = str.maketrans("⓪①", "01")
PYTHON_SAYS = {  # written apart from the generator's own table
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "leftshift": lambda a, b: a * 2**b,
    "rightshift": lambda a, b: a // 2**b,
}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        (Problem("add", 11, 6), "add ①⓪①① ⓪①①⓪ = ①⓪⓪⓪①"),
        (Problem("subtract", 11, 6), "subtract ①⓪①① ⓪①①⓪ = ①⓪①"),
        (Problem("multiply", 3, 2), "multiply ①① ①⓪ = ①①⓪"),
        (Problem("leftshift", 11, 2), "leftshift ①⓪①① ①⓪ = ①⓪①①⓪⓪"),
        (Problem("rightshift", 11, 2), "rightshift ①⓪①① ①⓪ = ①⓪"),
        (Problem("leftshift", 0, 3), "leftshift ⓪ ①① = ⓪⓪⓪⓪"),
        (Problem("rightshift", 1, 4), "rightshift ① ①⓪⓪ = ⓪"),
        (Problem("subtract", 5, 5), "subtract ①⓪① ①⓪① = ⓪"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_the_answer_is_written_as_the_format_says(problem: Problem, answer: str) -> None:
    assert problem.answer == answer
    assert problem.question == {"role": "user", "content": "Compute: " + answer.split(" = ")[0]}


@given(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 100_000), st.integers(0, 20))
def test_the_result_read_back_from_the_text_is_what_python_computes(op: str, a: int, b: int) -> None:
    if op == "subtract" and a < b:
        a, b = b, a
    expression, result = Problem(op, a, b).answer.split(" = ")
    name, left, right = expression.split(" ")
    assert (name, int(left.translate(DIGITS), 2), int(right.translate(DIGITS), 2)) == (op, a, b)
    assert int(result.translate(DIGITS), 2) == PYTHON_SAYS[op](a, b)
    if op == "leftshift":
        assert len(result) == len(left) + b
    elif op != "rightshift":
        assert result == "⓪" or result[0] == "①"


def test_a_training_file_carries_checked_metadata_and_a_true_sidecar(tmp_path: Path) -> None:
    out = tmp_path / "shifts.jsonl"
    assert main([str(out), "--count", "50", "--seed", "3"]) == 0
    rows = read(out)
    sidecar = json.loads((tmp_path / "shifts.jsonl.meta.json").read_text())
    assert len(rows) == sidecar["example_count"] == 50
    assert sidecar["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (sidecar["spec"], sidecar["generator_id"]) == ("binary_v1", "binary_local")
    for row in rows:
        told = row["metadata"]
        problem = Problem(told["op"], *told["operands"])
        assert [turn["content"] for turn in row["messages"]] == [problem.question["content"], problem.answer]
        assert told["result"] == problem.result
        assert (told["bits"], told["level"], told["seed"]) == (problem.left.bit_length(), 4, 3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        out, suite = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.suite"
        assert main([str(out), "--seed", seed, "--count", "60", "--suite", str(suite)]) == 0
    for suffix in ("jsonl", "suite"):
        first, again, other = [(tmp_path / f"{name}.{suffix}").read_bytes() for name in "abc"]
        assert first == again
        assert first != other


def test_no_held_out_question_is_among_the_training_rows(tmp_path: Path) -> None:
    out, suite = tmp_path / "rows.jsonl", tmp_path / "suite.jsonl"
    assert main([str(out), "--count", "1944", "--suite", str(suite), "--held-out", "100"]) == 0
    trained = {row["messages"][0]["content"] for row in read(out)}
    asked = {item["messages"][0]["content"] for item in read(suite)}
    assert (len(trained), len(asked)) == (1944, 100)  # all different
    assert trained.isdisjoint(asked)
    assert len({item["id"] for item in read(suite)}) == 100
    for item in read(suite):
        assert item["messages"][0]["content"] == "Compute: " + item["expected"].split(" = ")[0]


def test_subtraction_never_goes_below_zero() -> None:
    assert all(problem.result >= 0 for problem in draw("subtract", range(10), range(10), count=55, seed=1))


def test_asking_for_more_problems_than_the_ranges_hold_says_how_many_there_are() -> None:
    with pytest.raises(UsageError, match="only 55 found") as caught:
        draw("subtract", range(10), range(10), count=56, seed=1)
    assert "widen" in caught.value.fix


def test_ranges_too_large_to_list_still_give_different_problems() -> None:
    problems = draw("multiply", range(10**6), range(10**6), count=500, seed=2)
    assert len(set(problems)) == 500
    assert problems == draw("multiply", range(10**6), range(10**6), count=500, seed=2)


@pytest.mark.parametrize("wrong", [["--left", "9-1"], ["--left", "a"], ["--count", "0"], ["--op", "xor"]])
def test_a_wrong_argument_ends_with_exit_code_2(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "x.jsonl"), *wrong])
    assert caught.value.code == 2
    assert not list(tmp_path.iterdir())


def test_too_few_problems_on_the_command_line_end_with_exit_code_2_and_write_nothing(tmp_path: Path) -> None:
    assert main([str(tmp_path / "x.jsonl"), "--count", "2045"]) == 2
    assert not list(tmp_path.iterdir())


def test_the_generator_starts_without_torch(tmp_path: Path) -> None:
    script = "import sys; from curriculum.generators.binary import main; main(sys.argv[1:])"
    code = f"{script}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.jsonl")], check=False).returncode == 0


def test_zero_is_written_as_one_digit() -> None:
    assert circled(0) == "⓪"
