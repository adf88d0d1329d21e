"""Strict JSON for rows: a fast path that proves a line harmless, a slow one that explains (arrow: intake).

Refused beyond the grammar: NaN and infinities, numbers that do not fit a double, integers over 64 bits, duplicate keys,
lone surrogates, U+0000, nesting deeper than 64. A line that the fast path cannot prove goes to the slow one, which
decides; a test holds both to each other.
"""

import json
import math
import re
from typing import Any  # JSON values

import numpy as np
import orjson

from core.formats.rows import LATIN1_FIX, RowProblem

MAX_DEPTH = 64
# How a row ends that was cut off.
INCOMPLETE, UNCLOSED, MID_CHARACTER = "the row is incomplete", "a text is not closed", "ends within a character"
CR_ALONE, CR_FIX = "its lines end in CR alone, not in LF", "tr '\\r' '\\n' < NAME > NEW"
_MAX_INT_DIGITS = 20
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_DIGITS_ONLY = bytes(ord("0") if chr(byte).isascii() and chr(byte).isdigit() else ord(" ") for byte in range(256))
_LONG_DIGITS = b"0" * 19
_STRIDE = 9
_BACKSLASH, _U = ord("\\"), ord("u")
_QUOTE, _BRACE, _LINE_FEED, _ZERO, _TWO = ord('"'), ord("{"), ord("\n"), ord("0"), ord("2")
_BEGUN = re.compile(r"-|\.|[eE][+-]?|t(ru?)?|f(a(ls?)?)?|n(ul?)?|u[0-9a-fA-F]{0,4}|")  # a number, word or escape
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


def parse_row(raw: bytes) -> dict[str, Any] | RowProblem:
    """Read one row. Never raises for what the bytes hold.

    Args:
        raw: one line without its line end, or one JSON value of another format.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return explain(raw) or RowProblem(
            "bad_json", f"not valid JSON: {error.msg}", error.pos + 1, fix="write it as JSON has it"
        )
    if type(value) is not dict:
        return _not_an_object(value)
    return value if _harmless(raw, [value]) else explain(raw) or value


def parse_rows(raws: list[bytes]) -> list[dict[str, Any]] | None:
    """Read many rows at once; None when one of them is not plainly good (`parse_row` then tells which and why)."""
    try:
        values = [orjson.loads(raw) for raw in raws]
    except orjson.JSONDecodeError:
        return None
    if set(map(type, values)) != {dict}:
        return None
    return values if _harmless(b"\n".join(raws), values) else None


def _not_an_object(value: object) -> RowProblem:
    kind = {list: "an array", str: "a string", type(None): "null", bool: "true or false"}.get(type(value), "a number")
    hint = (
        "write one object a line, or name a file that is one array NAME.json"
        if isinstance(value, list)
        else "every row is a JSON object {...}"
    )
    return RowProblem("bad_json", f"the row is {kind}, not an object", 1, "$", hint)


def has_odd_escapes(text: bytes) -> bool:
    """Does text that ends in } or } and LF hold a quote or a U+0000 escaped by number? It is looked at line by line.

    Numpy, since CPython's search for a few bytes is ten times slower than a comparison of all of them.
    """
    chars = np.frombuffer(text, dtype=np.uint8)
    escaped = (chars[:-1] == _BACKSLASH) & (chars[1:] == _U)
    if not escaped.any():
        return False
    numbered = np.flatnonzero(escaped)
    first, second, third, fourth = (chars[numbered[numbered < len(chars) - 5] + at] for at in (2, 3, 4, 5))
    low = (first == _ZERO) & (second == _ZERO) & (third == fourth)
    return bool((low & ((third == _ZERO) | (third == _TWO))).any())


def count_quotes(text: bytes) -> int:
    """How often " stands in JSON without odd escapes: as often as in its values written out again, unless one of two
    equal keys was swallowed, for a key has two of them.
    """
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == _QUOTE))


def _harmless(text: bytes, values: list[Any]) -> bool:
    """True when nothing that we refuse can hide in lines that orjson accepted.

    Depth is at most the number of opening brackets of a line; cut integers have 19 digits or more.
    """
    if has_odd_escapes(text):
        return False
    chars = np.frombuffer(text, dtype=np.uint8)
    opens = np.flatnonzero((chars | 32) == _BRACE)  # [ and { differ in this bit
    if len(opens) > MAX_DEPTH:
        starts = np.searchsorted(opens, np.flatnonzero(chars == _LINE_FEED))
        if np.diff(np.concatenate(([0], starts, [len(opens)]))).max() > MAX_DEPTH:
            return False
    digits = (chars[::_STRIDE] - _ZERO) < 10  # a run of 19 covers two neighbours of every ninth byte
    if (digits[1:] & digits[:-1]).any() and _LONG_DIGITS in text.translate(_DIGITS_ONLY):
        return False
    return count_quotes(text) == count_quotes(orjson.dumps(values))


class _Refused(ValueError):
    """Raised inside the slow parser, with the whole reason; `needle` is what to look for to find its column."""

    def __init__(self, message: str, needle: str, fix: str) -> None:
        super().__init__(message)
        self.needle = needle
        self.fix = fix


def explain(raw: bytes) -> RowProblem | None:
    """Say what is wrong with a line, or None when nothing is: slow, exact, and the one place of these sentences."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start + 1
        if error.reason == "unexpected end of data":
            return RowProblem("bad_encoding", f"the row {MID_CHARACTER}", at, fix="copy the file again")
        return RowProblem("bad_encoding", f"not UTF-8 at byte {at} of the line", at, fix=LATIN1_FIX)
    depth = _depth(text)
    if depth > MAX_DEPTH:
        return RowProblem("bad_json", f"nested {depth} deep, more than {MAX_DEPTH}", fix="flatten the row")
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_strict_int,
            parse_float=_strict_float,
            object_pairs_hook=_unique,
        )
    except json.JSONDecodeError as error:
        return _syntax(text, error)
    except (_Refused, RecursionError) as error:
        fix = getattr(error, "fix", "flatten the row")
        return RowProblem("bad_json", str(error), _column_of(text, error), fix=fix)
    if type(value) is not dict:
        return _not_an_object(value)
    return _bad_text(value)


def plain_words(error: json.JSONDecodeError) -> str:
    """What the parser says, without the beginning of a place that it does not name."""
    return UNCLOSED if error.msg.startswith("Unterminated") else error.msg.removesuffix(" at")


def is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Could the text be the beginning of good JSON?"""
    return error.msg.startswith("Unterminated") or _BEGUN.fullmatch(text[error.pos :].strip()) is not None


def _syntax(text: str, error: json.JSONDecodeError) -> RowProblem:
    message, fix = f"not valid JSON: {plain_words(error)}", "write the row as JSON, with a program rather than by hand"
    rest = text[error.pos :].lstrip()
    if error.msg == "Extra data" and "\r" in text[len(text[: error.pos].rstrip()) : error.pos]:
        message, fix = CR_ALONE, CR_FIX
    elif error.msg == "Extra data":
        message, fix = "two JSON values on one line", "write one object a line"
    elif error.msg.startswith("Unterminated"):
        message, fix = UNCLOSED, 'write the closing ", and line ends inside a text as \\n'
    elif is_cut_off(text, error):
        message, fix = INCOMPLETE, "write each object on one line"
    elif rest[0] in "}]" and text[: error.pos].rstrip().endswith(","):
        fix = "remove the trailing comma"
    elif rest[0] in "}]":
        fix = f"write what is missing before the {rest[0]!r}: a value, or the bracket that closes an open one"
    elif rest[0] == "'":
        message, fix = "single quotes are not JSON", 'use "double quotes"'
    elif error.msg.startswith("Invalid control character"):
        fix = "write line ends and tabs as \\n and \\t"
    return RowProblem("bad_json", message, error.pos + 1, None, fix)


def _column_of(text: str, error: Exception) -> int | None:
    """Where the refused key or number stands, when it can be found by its spelling."""
    needle = getattr(error, "needle", None)
    position = text.rfind(needle) if needle else -1
    return position + 1 if position >= 0 else None


def _refuse_constant(name: str) -> object:
    raise _Refused(f"{name} is not JSON", name, "write null, or leave it out")


def _strict_int(digits: str) -> int:
    if len(digits) <= _MAX_INT_DIGITS and _INT_MIN <= int(digits) <= _INT_MAX:
        return int(digits)
    raise _Refused(f"an integer of {len(digits.lstrip('-'))} digits does not fit 64 bits", digits, "write it as text")


def _strict_float(digits: str) -> float:
    value = float(digits)
    if math.isfinite(value):
        return value
    raise _Refused(f"{digits[:30]} does not fit a double", digits, "write it as text")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"key {twice!r} stands twice", json.dumps(twice, ensure_ascii=False), "keep one of the two")
    return row


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings; linear, and safe for any depth."""
    deepest = depth = 0
    for found in _BRACKETS.finditer(text):
        if found[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in "]}":
            depth -= 1
    return deepest


def _bad_text(row: dict[str, Any]) -> RowProblem | None:
    todo: list[tuple[str, Any]] = [("$", row)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{path}.{key}", inner) for key, inner in value.items()]
            todo += [(path, key) for key in value]
        elif isinstance(value, list):
            todo += [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
        elif isinstance(value, str):
            if "\x00" in value:
                return RowProblem("bad_json", "U+0000 in a text", None, path, "remove the NUL character")
            if _has_surrogate(value):
                message = "a lone surrogate escape (\\ud800-\\udfff)"
                return RowProblem("bad_json", message, None, path, "write the character whole")
    return None


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
