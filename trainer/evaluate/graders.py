"""Graders of free answers (arrow: judge): a registry from a name in a suite to a pure function.

A grader takes the answer and what was expected and returns a score in 0..1; 1 is right. An answer that cannot be
read is wrong, never an error; an `expected` that cannot be read is the suite's fault and raises ConfigError.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

import jsonschema_rs
import regex as bounded_re

from core.errors import ConfigError

Grader = Callable[[str, object], float]

# A hyphen after a digit, a letter or a bracket joins or subtracts (2-3, page-3); elsewhere it is a sign.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_GSM8K_MARK = re.compile(r"####\s*(-?[\d,]*\.?\d+)")
_CURRENCY = re.compile(r"[$€£¥]\s*")
_CIRCLED = {"⓪": "0", "①": "1"}
_ANSWER_CAP = 20_000  # characters: a runaway answer must not cost a grader seconds
# A pattern like (a+)+b takes for ever on the wrong answer; one that takes this long has not matched.
_REGEX_TIMEOUT_S = 1.0

_registry: dict[str, Grader] = {}


def register_grader(*names: str) -> Callable[[Grader], Grader]:
    """Make a grader known under these names."""

    def add(grader: Grader) -> Grader:
        for name in names:
            if name in _registry:
                raise ValueError(f"grader {name!r} is registered twice")
            _registry[name] = grader
        return grader

    return add


def grader_names() -> list[str]:
    """Every name that a suite may use."""
    return sorted(_registry)


def grade(name: str, answer: str, expected: object) -> float:
    """Score one answer, 0..1.

    Raises:
        ConfigError: no such grader, or it cannot read `expected`.
    """
    grader = _registry.get(name)
    if grader is None:
        raise ConfigError(f"no grader {name!r}", fix=f"use one of {', '.join(grader_names())}")
    return grader(answer[:_ANSWER_CAP], expected)


def check_expected(name: str, expected: object) -> None:
    """Raise ConfigError when the grader cannot read `expected`: found when a suite is read, not in the middle of it."""
    if expected in ("", [], {}) and name != "json_schema":
        raise ConfigError("the expected answer is empty", fix="give what a right answer says")
    grade(name, "", expected)


def normalised(text: str) -> str:
    """What exact match compares: NFC, white space collapsed, ends trimmed. Case and punctuation count."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _text(expected: object) -> str:
    if not isinstance(expected, str):
        raise ConfigError(f"this grader needs a string as expected answer, found {expected!r:.80}")
    return expected


@register_grader("exact_match", "exact")
def exact_match(answer: str, expected: object) -> float:
    """Equal after `normalised`; a list of strings means any of them."""
    wanted = expected if isinstance(expected, list) else [expected]
    return float(normalised(answer) in {normalised(_text(one)) for one in wanted})


@register_grader("numeric", "gsm8k")
def numeric(answer: str, expected: object) -> float:
    """Equal as numbers: the number after `####` when there is one, else the last number of the text."""
    wanted = _number(str(expected) if isinstance(expected, int | float) else _text(expected))
    if wanted is None:
        raise ConfigError(f"there is no number in the expected answer {expected!r:.80}")
    return float(_number(answer) == wanted)


def _number(text: str) -> Decimal | None:
    """Commas are thousands; currency signs and the longer minus of typographers do not matter."""
    text = _CURRENCY.sub("", text.replace("\N{MINUS SIGN}", "-"))
    marked = _GSM8K_MARK.findall(text)
    found = marked[-1:] or _NUMBER.findall(text)[-1:]
    try:
        return Decimal(found[0].replace(",", "")) if found else None
    except InvalidOperation:
        return None


@register_grader("binary", "binary_v1")
def binary(answer: str, expected: object) -> float:
    """The binary skill: first line, text after the last "=", spaces removed; equal as an integer and in width.

    The expected answer is written by the rule of its operation (no leading zeros after arithmetic, operand width
    after bitwise operations), so its width is the width the rule asks for.
    """
    wanted = _circled(_text(expected))
    if wanted is None:
        raise ConfigError(f"there is no circled binary number in the expected answer {expected!r:.80}")
    found = _circled(answer)
    return float(found is not None and int(found, 2) == int(wanted, 2) and len(found) == len(wanted))


def _circled(text: str) -> str | None:
    first_line = text.strip().split("\n", 1)[0]
    tail = "".join(first_line.rpartition("=")[2].split())
    digits = [_CIRCLED.get(char) for char in tail]
    return "".join(d for d in digits if d) if digits and None not in digits else None


@register_grader("token_f1")
def token_f1(answer: str, expected: object) -> float:
    """Overlap of words, as harmonic mean of precision and recall (SQuAD's measure; lower case, no punctuation)."""
    found, wanted = Counter(_words(answer)), Counter(_words(_text(expected)))
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((found & wanted).values())
    return 2 * shared / (sum(found.values()) + sum(wanted.values()))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())


@register_grader("regex")
def regex(answer: str, expected: object) -> float:
    """The trimmed answer matches the expected pattern from end to end, within a bounded time."""
    try:
        pattern = bounded_re.compile(_text(expected), flags=bounded_re.DOTALL)
    except (bounded_re.error, RecursionError) as error:
        raise ConfigError(f"the expected pattern does not compile: {error}") from error
    try:
        return float(pattern.fullmatch(answer.strip(), timeout=_REGEX_TIMEOUT_S) is not None)
    except TimeoutError:
        return 0.0


def _refuse_to_fetch(uri: str) -> dict[str, object]:
    raise ValueError(f"{uri} is elsewhere; a suite's schema must be whole")


@register_grader("json_schema")
def json_schema(answer: str, expected: object) -> float:
    """The answer is one JSON document that is valid under the expected JSON Schema."""
    if not isinstance(expected, dict):
        raise ConfigError("the grader json_schema needs a JSON Schema (an object) as expected answer")
    try:
        validator = jsonschema_rs.validator_for(expected, retriever=_refuse_to_fetch)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise ConfigError(f"the expected JSON Schema is not one: {error}") from error
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        return 0.0
    return float(validator.is_valid(document))
