"""The fast path accepts a line only when the slow, explaining one has nothing to say."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.formats.rows import RowProblem
from core.formats.strict_json import explain, parse_row, parse_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
TRICKY = st.sampled_from(['":', '" :', "\\", '\\":', "{", "[", "9" * 25, '"', ":", "\\u0022:", "\u2028", "e9", "🙂"])
STRINGS = st.one_of(TEXT, TRICKY, st.tuples(TEXT, TRICKY, TEXT).map("".join))
NUMBERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        STRINGS,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(STRINGS, inner, max_size=4)),
    max_leaves=12,
)
ROWS = st.dictionaries(STRINGS, VALUES, max_size=5)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",\t", "\t:")]))
def test_every_json_object_is_read_as_the_standard_library_reads_it(
    row: dict[str, object], ascii_only: bool, separators: tuple[str, str]
) -> None:
    raw = json.dumps(row, ensure_ascii=ascii_only, separators=separators).encode()
    assert parse_row(raw) == json.loads(raw)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.data())
def test_a_key_that_stands_twice_is_found_wherever_it_hides(row: dict[str, object], data: st.DataObject) -> None:
    key = data.draw(STRINGS)
    gap = data.draw(st.sampled_from(["", " ", "\t", "  \t"]))
    first, second = json.dumps(key), json.dumps(key, ensure_ascii=False)
    inner = f"{{{first}{gap}: 1, {second}: 2}}"
    raw = json.dumps(row | {"last": None}, ensure_ascii=False).encode().removesuffix(b"null}") + inner.encode() + b"}"
    result = parse_row(raw)
    assert isinstance(result, RowProblem) and "stands twice" in result.message
    assert parse_rows([raw]) is None


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 60))
def test_damaged_bytes_never_raise_and_both_paths_agree(noise: bytes, at: int) -> None:
    raw = b'{"messages":[{"role":"user","content":"x"}],"n":1}'
    raw = raw[:at] + noise + raw[at:]
    result = parse_row(raw)
    slow = explain(raw)
    if isinstance(result, RowProblem):
        assert result.message
    else:
        assert slow is None


@pytest.mark.parametrize(
    ("raw", "column"),
    [(b'{"a": 1,}', 9), (b'{"a": NaN}', 7), (b'{"a": 1, "a": 2}', 10), (b'{"a": tru}', 7), (b"{'a': 1}", 2)],
)
def test_the_column_is_where_the_fault_stands(raw: bytes, column: int) -> None:
    result = parse_row(raw)
    assert isinstance(result, RowProblem)
    assert result.column == column


def test_sixty_four_levels_are_deep_enough_and_one_more_is_too_deep() -> None:
    def nested(depth: int) -> bytes:
        return b'{"x":' * depth + b"1" + b"}" * depth

    assert isinstance(parse_row(nested(64)), dict)
    assert isinstance(parse_row(nested(65)), RowProblem)


def test_a_block_with_one_doubtful_line_is_left_to_the_row_by_row_path() -> None:
    good, bad = b'{"a":1}', b'{"a":1,"a":1}'
    assert parse_rows([good, good]) == [{"a": 1}, {"a": 1}]
    assert parse_rows([good, bad]) is None
    assert parse_rows([good, b"[1]"]) is None
    assert parse_rows([b'{"a":[1', b"2]}", b'{"a":1},{"b":2}']) is None


@pytest.mark.parametrize("raw", [b'{"a": 1,}', b'{"a": [1, ]}'])
def test_a_trailing_comma_is_called_one(raw: bytes) -> None:
    found = parse_row(raw)
    assert isinstance(found, RowProblem) and found.fix == "remove the trailing comma"


@pytest.mark.parametrize("raw", [b'{"messages": [}', b'{"a": [1}', b'{"a": }', b'{"a, ": ]}'])
def test_a_bracket_that_comes_too_early_is_not_blamed_on_a_comma(raw: bytes) -> None:
    found = parse_row(raw)
    assert isinstance(found, RowProblem) and found.fix and "comma" not in found.fix and "before the" in found.fix
