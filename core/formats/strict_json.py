"""Strict JSON for rows: a fast path that proves a line harmless, a slow one that explains (arrow: intake).

Refused beyond the grammar: NaN and infinities, numbers that do not fit a double, integers over 64 bits, duplicate keys,
lone surrogates, U+0000, nesting deeper than 64. A line that the fast path cannot prove goes to the slow one, which
decides; a test holds both to each other.
"""

import json
import math
import re
from typing import Any  # JSON values

import orjson

from core.formats.rows import RowProblem

MAX_DEPTH = 64
_MAX_INT_DIGITS = 20
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_KEY_GAP = re.compile(rb'"[ \t\r]+:')
_KEY_END = re.compile(rb'(?<!\\)":')
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


def parse_row(raw: bytes) -> dict[str, Any] | RowProblem:
    """Read one row. Never raises for what the bytes hold.

    Args:
        raw: one line without its line end, or one JSON value of another format.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return explain(raw) or RowProblem("bad_json", f"not valid JSON: {error.msg}", error.colno)
    if type(value) is not dict:
        return _not_an_object(value)
    if _proven(raw, value):
        return value
    return explain(raw) or value


def _not_an_object(value: object) -> RowProblem:
    kind = {list: "an array", str: "a string", type(None): "null", bool: "true or false"}.get(type(value), "a number")
    hint = "write one object a line" if isinstance(value, list) else "every row is a JSON object {...}"
    return RowProblem("bad_json", f"the row is {kind}, not an object", 1, "$", hint)


def _proven(raw: bytes, row: dict[str, Any]) -> bool:
    """True when neither duplicate keys nor odd numbers, depths or characters can hide in a line orjson accepted.

    Every key of the text ends in `":` when no white space stands between; so when there are no more of these than
    keys in the parsed row, no key was swallowed by a duplicate.
    """
    if b"\\u00" in raw or b"\\b" in raw or b"\\f" in raw:
        return False
    if (b" :" in raw or b"\t:" in raw or b"\r:" in raw) and _KEY_GAP.search(raw):
        return False
    keys = _count_keys(row)
    if raw.count(b'":') == keys:
        return True
    return b'\\\\"' not in raw and len(_KEY_END.findall(raw)) == keys


def _count_keys(row: dict[str, Any]) -> int:
    """Keys of a row and all it holds; -1 when it holds a float (which may be a cut integer) or nests too deep."""
    keys = len(row)
    for value in row.values():
        if type(value) is list:
            for item in value:
                if type(item) is dict and all(type(inner) is str for inner in item.values()):
                    keys += len(item)
                elif type(item) is not str:
                    return _count_deeply(row)
        elif type(value) is not str:
            return _count_deeply(row)
    return keys


def _count_deeply(row: dict[str, Any]) -> int:
    keys = 0
    level: list[Any] = [row]
    for _depth in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if type(value) is dict:
                keys += len(value)
                inner += value.values()
            elif type(value) is list:
                inner += value
            elif type(value) is float:
                return -1
        level = [value for value in inner if type(value) not in (str, int, bool, type(None))]
        if not level:
            return keys
    return -1


class _Refused(ValueError):
    """Raised inside the slow parser, with the whole reason."""


def explain(raw: bytes) -> RowProblem | None:
    """Say what is wrong with a line, or None when nothing is: slow, exact, and the one place of these sentences."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return RowProblem("bad_encoding", f"not UTF-8 at byte {error.start + 1} of the line", error.start + 1)
    depth = _depth(text)
    if depth > MAX_DEPTH:
        return RowProblem("bad_json", f"nested {depth} deep, more than {MAX_DEPTH}")
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
        return RowProblem("bad_json", str(error), _column_of(text, error))
    if type(value) is not dict:
        return _not_an_object(value)
    return _bad_text(value)


def _syntax(text: str, error: json.JSONDecodeError) -> RowProblem:
    message, fix = f"not valid JSON: {error.msg}", None
    rest = text[error.pos :].lstrip()
    if error.msg == "Extra data":
        message, fix = "two JSON values on one line", "write one object a line"
    elif not rest:
        message, fix = "the row is incomplete", "write each object on one line"
    elif rest[0] in "}]":
        message, fix = f"not valid JSON: {error.msg}", "remove the trailing comma"
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


def _refused(message: str, needle: str) -> _Refused:
    error = _Refused(message)
    error.needle = needle  # type: ignore[attr-defined]  # carried to _column_of
    return error


def _refuse_constant(name: str) -> object:
    raise _refused(f"{name} is not JSON", name)


def _strict_int(digits: str) -> int:
    if len(digits) <= _MAX_INT_DIGITS and _INT_MIN <= int(digits) <= _INT_MAX:
        return int(digits)
    raise _refused(f"an integer of {len(digits.lstrip('-'))} digits does not fit 64 bits", digits)


def _strict_float(digits: str) -> float:
    value = float(digits)
    if math.isfinite(value):
        return value
    raise _refused(f"{digits[:30]} does not fit a double", digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _refused(f"key {twice!r} stands twice", json.dumps(twice, ensure_ascii=False))
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
