"""Each grader on right, wrong and unreadable answers."""

import pytest

from core.errors import ConfigError
from trainer.evaluate import graders
from trainer.evaluate.graders import check_expected, grade, grader_names, register_grader


@pytest.mark.parametrize(
    ("name", "answer", "expected", "score"),
    [
        ("exact_match", "  a\n b ", "a b", 1),
        ("exact_match", "é", "é", 1),
        ("exact_match", "A b", "a b", 0),
        ("exact_match", "", "a", 0),
        ("exact_match", "two", ["one", "two"], 1),
        ("numeric", "so 3 + 4 = 7\n#### 7", "#### 7", 1),
        ("numeric", "the answer is 1,234.", "#### 1234", 1),
        ("numeric", "#### 7.0", "7", 1),
        ("numeric", "#### 7 apples, not 9", "#### 7", 1),
        ("numeric", "#### 3, no, wait: #### 7", "#### 7", 1),
        ("numeric", "costs $18", 18, 1),
        ("numeric", "#### -3", "#### 3", 0),
        ("numeric", "no idea", "#### 3", 0),
        ("numeric", "12 then 13", "#### 12", 0),
        ("numeric", "#### -$1,234.50", "#### -1234.5", 1),
        ("numeric", "it lost $-3", "-3", 1),
        ("numeric", "it lost -€3", -3, 1),
        ("numeric", "it is \u22123 degrees", "-3", 1),
        ("numeric", "between 2-3", "3", 1),
        ("numeric", "(4)-3", "-3", 0),
        ("numeric", "5 - -3", "-3", 1),
        ("numeric", ".5", "0.5", 1),
        ("numeric", "18 £", "18", 1),
        ("binary", "leftshift ①⓪ ① = ①⓪⓪", "leftshift ①⓪ ① = ①⓪⓪", 1),
        ("binary", "①⓪⓪", "①⓪⓪", 1),
        ("binary", "x = ① ⓪ ⓪\nand more = ①", "①⓪⓪", 1),
        ("binary", "x = ⓪①⓪⓪", "①⓪⓪", 0),
        ("binary", "x = ①⓪①", "①⓪⓪", 0),
        ("binary", "x = 100", "①⓪⓪", 0),
        ("binary", "x = ①⓪⓪ (4)", "①⓪⓪", 0),
        ("binary", "x =", "①⓪⓪", 0),
        ("binary", "", "①⓪⓪", 0),
        ("token_f1", "The cat sat.", "the cat sat", 1),
        ("token_f1", "the cat", "the dog", 0.5),
        ("token_f1", "", "the dog", 0),
        ("regex", " 42 ", r"\d+", 1),
        ("regex", "42 apples", r"\d+", 0),
        ("json_schema", '{"a": 1}', {"type": "object", "required": ["a"]}, 1),
        ("json_schema", '{"b": 1}', {"type": "object", "required": ["a"]}, 0),
        ("json_schema", '{"a": 1', {"type": "object"}, 0),
        ("json_schema", "[" * 50_000, {"type": "array"}, 0),
    ],
)
def test_graders_score(name, answer, expected, score):
    assert grade(name, answer, expected) == score


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("numeric", "no number"),
        ("binary", "101"),
        ("exact_match", {"a": 1}),
        ("regex", "("),
        ("json_schema", "text"),
        ("json_schema", {"type": 7}),
        ("json_schema", {"$ref": "http://127.0.0.1:9/x"}),
        ("never heard of", "a"),
    ],
)
def test_a_suite_that_cannot_be_graded_is_refused_by_name(name, expected):
    with pytest.raises(ConfigError):
        grade(name, "a", expected)


def test_a_pattern_that_explodes_is_given_up_and_has_not_matched(monkeypatch):
    answer, pattern = "a" * 30 + "!", "(?:(?:a|aa)+[bc]|a+!)"  # matches in the end, after 0.2 s of trying
    assert grade("regex", answer, pattern) == 1
    monkeypatch.setattr(graders, "_REGEX_TIMEOUT_S", 0.01)
    assert grade("regex", answer, pattern) == 0


@pytest.mark.parametrize("pattern", ["(", "(" * 5_000 + "a" + ")" * 5_000, "(?P<a>x)(?P<a"])
def test_a_pattern_that_does_not_compile_is_the_suites_fault(pattern):
    with pytest.raises(ConfigError, match="does not compile"):
        check_expected("regex", pattern)


@pytest.mark.parametrize(
    ("name", "expected"), [("exact_match", ""), ("exact_match", []), ("regex", ""), ("numeric", "")]
)
def test_an_empty_expected_answer_is_refused(name, expected):
    with pytest.raises(ConfigError, match="empty"):
        check_expected(name, expected)


def test_a_runaway_answer_is_cut_before_it_is_graded():
    assert grade("exact_match", "a" * 10_000_000, "b") == 0
    assert grade("numeric", "9" * 3_000_000, "#### 1") == 0


def test_a_grader_name_is_taken_once():
    assert "binary" in grader_names()
    with pytest.raises(ValueError, match="twice"):
        register_grader("binary")(lambda answer, expected: 1.0)
