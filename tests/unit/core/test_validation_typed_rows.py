"""The typed fast road of the gates: what it takes, the slow road takes too, with the same identity of every row."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.formats import RowProblem
from core.formats.jsonl import JsonlReader
from core.formats.strict_json import parse_row
from core.lineage import Sidecar
from core.paths import builtin_config
from core.validation import DATASET_SPECS, layer_one
from core.validation.contamination import SuiteIndex
from core.validation.inspection import Inspection
from core.validation.layer_one import LayerOne
from core.validation.plan import Plan
from core.validation.rows import canonical_json, prompt_sha256
from core.validation.specs import DatasetSpec
from core.validation.typed_rows import typed_rows

GOOD: dict[str, dict[str, Any]] = {
    "chat_sft_v1": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 7},
    "completion_v1": {"text": 'some "text": with\\ all \u00e9 \n', "source": "s"},
    "prompt_completion_v1": {"prompt": "p", "completion": "c"},
    "alpaca_v1": {"instruction": "i", "input": "x", "output": "o"},
    "sharegpt_v1": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "binary_v1": {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "metadata": {"skill": "binary", "level": 3, "op": "add", "operands": [1, 2], "result": 3},
    },
    "syllo_v1": {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "metadata": {
            "skill": "syllo",
            "level": 1,
            "puzzle_id": "syllo-L1-7",
            "word_count": 1,
            "bank_size": 1,
            "red_herrings": [],
            "words": ["a"],
        },
    },
}
TEXTS = st.text(alphabet='ab"\\:{}[], \n\t\x00\x1c\x85\u00e9\u2028\U0001f600', max_size=4) | st.sampled_from(
    ["user", "assistant", "system", "human", "gpt", "binary", "syllo", "syllo-L1-"]
)
NUMBERS = st.sampled_from(
    ["0", "-0", "01", "1.0", "1e2", "1e999", "NaN", "-Infinity", "9223372036854775807", "9223372036854775808", "1" * 30]
)


@st.composite
def spelt(draw: st.DrawFn, value: Any) -> str:  # any JSON
    """A value as JSON in one of its spellings; now and then a little wrong, or another value."""
    odd = draw(st.integers(0, 30))
    if odd == 0:
        return draw(NUMBERS | TEXTS.map(json.dumps) | st.sampled_from(["null", "true", "{}", "[]", '"\\ud800"', "'a'"]))
    gap = draw(st.sampled_from(["", "", "", " ", "\t", " \r"]))
    if isinstance(value, dict):
        items = [(key, draw(spelt(inner))) for key, inner in draw(st.permutations(list(value.items())))]
        if items and draw(st.integers(0, 12)) == 0:  # a key twice, maybe spelt otherwise
            items.append((items[0][0], draw(spelt(value[items[0][0]]))))
        if draw(st.integers(0, 20)) == 0:
            items.append((draw(TEXTS | st.sampled_from(["id", "metadata", "source"])), draw(spelt("x"))))
        return "{" + f",{gap}".join(f"{_key(draw, key)}{gap}:{gap}{inner}" for key, inner in items) + "}"
    if isinstance(value, list):
        return "[" + f"{gap},".join(draw(spelt(inner)) for inner in value) + "]"
    if isinstance(value, str):
        text = draw(st.just(value) | TEXTS)
        return _by_number(text) if odd == 1 else json.dumps(text, ensure_ascii=odd % 2 == 0)
    return json.dumps(value)


def _key(draw: st.DrawFn, key: str) -> str:
    return _by_number(key) if draw(st.integers(0, 15)) == 0 else json.dumps(key)


def _by_number(text: str) -> str:
    units = text.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)) + '"'


def slowly(spec: DatasetSpec, line: bytes) -> bytes | RowProblem:
    """The canonical JSON of a line by the road that explains."""
    value = parse_row(line)
    row = value if isinstance(value, RowProblem) else LayerOne(spec, {}, SuiteIndex({}))._check_one(value)
    return row if isinstance(row, RowProblem) else canonical_json(row)


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_the_fast_road_takes_the_slow_road_takes_alike(name: str, data: st.DataObject) -> None:
    spec, typed = DATASET_SPECS[name], typed_rows(DATASET_SPECS[name])
    assert typed is not None
    lines = [data.draw(spelt(GOOD[name])).encode("utf-8", "surrogatepass") for _ in range(data.draw(st.integers(1, 3)))]
    found = typed.read(b"\n".join([*lines, b""]), len(lines))
    if found is not None:
        assert found.texts == [slowly(spec, line) for line in lines]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_good_rows_of_every_spec_take_the_fast_road(name: str, separators: tuple[str, str], ascii_only: bool) -> None:
    typed = typed_rows(DATASET_SPECS[name])
    line = json.dumps(GOOD[name], separators=separators, ensure_ascii=ascii_only).encode()
    found = typed.read((line + b"\n") * 3, 3) if typed else None
    assert found is not None and found.texts == [slowly(DATASET_SPECS[name], line)] * 3


@pytest.mark.parametrize(
    "line",
    [
        '{"text":"a","text":"b"}',
        '{"text":"a" ,"te\\u0078t" : "b"}',
        '{"text":"\\u0022a","text":"b"}',
        '{"text":"a","source":"x","source":"y"}',
        '{"text":"\\u0000"}',
        '{"text":"a","id":18446744073709551616}',
        '{"text":"a","metadata":{"a":1,"a":2}}',
        '{"text":" \\n"}',
        '{"text":"a"}{"text":"b"}',
        '{"text":"a","more":1}',
    ],
)
def test_a_doubtful_row_is_left_to_the_slow_road(line: str) -> None:
    typed = typed_rows(DATASET_SPECS["completion_v1"])
    assert typed is not None and typed.read(line.encode() + b"\n", 1) is None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("prompt_completion_v1", r'{"prompt":"\"\"","prompt":"","prompt":"a","completion":"b"}'),
        ("alpaca_v1", r'{"instruction":"\"\"","instruction":"b","input":"","output":"c"}'),
    ],
)
def test_quotes_that_a_chat_adds_do_not_make_up_for_a_swallowed_key(name: str, line: str) -> None:
    typed, spec = typed_rows(DATASET_SPECS[name]), DATASET_SPECS[name]
    assert typed is not None and typed.read(line.encode() + b"\n", 1) is None
    assert isinstance(slowly(spec, line.encode()), RowProblem)


@pytest.mark.parametrize(
    "turns",
    [
        [("assistant", "a"), ("user", "q")],
        [("user", "q"), ("user", "q")],
        [("user", "q"), ("assistant", "a"), ("user", "q")],
        [("user", "q"), ("system", "s"), ("assistant", "a")],
        [("user", "q"), ("assistant", " \n")],
        [("user", "q"), ("assistant", "")],
    ],
)
def test_turns_out_of_order_and_silent_answers_are_left_to_the_slow_road(turns: list[tuple[str, str]]) -> None:
    typed = typed_rows(DATASET_SPECS["chat_sft_v1"])
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    text = f"{json.dumps(GOOD['chat_sft_v1'])}\n{json.dumps(row)}\n".encode()
    assert typed is not None and typed.read(text, 2) is None
    assert isinstance(slowly(DATASET_SPECS["chat_sft_v1"], json.dumps(row).encode()), RowProblem)


def test_a_row_of_two_lines_beside_a_line_of_two_rows_is_not_taken() -> None:
    typed = typed_rows(DATASET_SPECS["completion_v1"])
    text = b'{"text":\n"a"}{"text":"b"}\n'
    assert typed is not None and typed.read(text, 2) is not None, "only the reader can tell"
    assert [batch.text for batch in _batches(text)] == [None]


def _batches(text: bytes) -> list[Any]:
    reader = JsonlReader(Path("not opened"), lambda _chunks: iter([text]))
    return list(reader.batches())


@pytest.mark.parametrize(
    "change",
    [
        {"type": "string", "format": "date"},
        {"type": "string", "pattern": "a.*$"},
        {"enum": ["a", 1]},
        {"type": "number"},
        {"$ref": "#/$defs/x"},
    ],
)
def test_a_schema_that_says_more_than_is_understood_has_no_fast_road(change: dict[str, Any]) -> None:
    schema = {"type": "object", "additionalProperties": False, "required": ["text"], "properties": {"text": change}}
    assert typed_rows(DatasetSpec("mine", "text", "1", schema, {})) is None


def test_a_spec_of_a_user_has_the_fast_road_made_from_its_schema() -> None:
    properties = {"text": {"type": "string", "minLength": 3}, "class": {"enum": ["a", "b"]}}
    schema = {"type": "object", "additionalProperties": False, "required": ["text", "class"], "properties": properties}
    typed = typed_rows(DatasetSpec("mine", "text", "1", schema, {}))
    assert typed is not None
    good = b'{"class": "a", "text": "abc"}\n'
    assert typed.read(good, 1) == ([b'{"text":"abc"}'], ["abc"])
    assert typed.read(good.replace(b"abc", b"ab"), 1) is None
    assert typed.read(good.replace(b'"a"', b'"c"'), 1) is None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_gets_the_same_verdict_by_both_roads(
    data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = data.draw(st.sampled_from(sorted(GOOD)))
    good = json.dumps(GOOD[name])
    rows = data.draw(st.lists(st.just(good) | spelt(GOOD[name]), min_size=1, max_size=30))
    file = tmp_path / "rows.jsonl"
    file.write_bytes("".join(f"{row}\n" for row in rows).encode("utf-8", "surrogatepass"))
    plan = Plan(specs=DATASET_SPECS, spec=data.draw(st.sampled_from([name, None])), detect_specs=tuple(GOOD))
    fast = Inspection(file, Sidecar(), plan).run()
    with monkeypatch.context() as patch:
        patch.setattr(layer_one, "typed_rows", lambda _spec: None)
        patch.setattr("core.validation.detection.typed_rows", lambda _spec: None)
        assert Inspection(file, Sidecar(), plan).run() == fast


@pytest.mark.parametrize(
    "asked",
    [
        "Add 5 and 2. Reply with the number and nothing else.",
        "  Add\t5 and  2. Reply with the number and nothing else. ",
    ],
)
def test_a_question_of_a_suite_is_found_on_the_fast_road_however_it_is_spaced(asked: str) -> None:
    suites = SuiteIndex.read([builtin_config() / "suites"])
    row = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "7"}]}
    others = [json.dumps(GOOD["chat_sft_v1"])] * 5
    layer = LayerOne(DATASET_SPECS["chat_sft_v1"], {}, suites)
    assert bytes.fromhex(prompt_sha256(row)) in suites.by_prompt
    assert layer.canonical(_batches("\n".join([*others, json.dumps(row), ""]).encode())[0]) is None
    assert layer.canonical(_batches("\n".join([*others, ""]).encode())[0]) is not None


def test_the_gates_start_without_the_libraries_that_only_other_levels_need() -> None:
    heavy = "torch", "transformers", "scipy", "datasketch", "jsonschema", "pyarrow"
    code = f"import sys, core.validation.gate; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
