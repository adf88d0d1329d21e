"""Bodies are checked field by field; what is refused is refused by name."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.fields import FIELDS, support_table
from inference.protocol import RequestError, chat_request, completion_request, score_request

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_defaults_are_those_of_the_imitated_api() -> None:
    asked = chat_request(CHAT)
    assert (asked.model, asked.n, asked.stream, asked.max_tokens, asked.logprobs) == ("dropforge", 1, False, None, None)
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.seed) == (1.0, 1.0, None)
    assert completion_request({"prompt": "x"}).max_tokens == 16


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat_request({"messages": [{"role": "developer", "content": parts}]})
    assert asked.messages == ({"role": "system", "content": "ab"},)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"seed": 1.5}, "seed"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(change: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat_request({**CHAT, **change})
    assert caught.value.http_status == 400
    assert (caught.value.param or "").startswith(param)


@pytest.mark.parametrize(
    ("check", "body", "sentence"),
    [
        (
            chat_request,
            {"stop": ["secret"] * 17},
            "stop: must be a text of 1 to 1000 characters, or a list of at most 16 such texts",
        ),
        (
            chat_request,
            {"messages": [{"role": "user", "content": ["secret"]}]},
            'messages[0].content: must be a text, or a list of parts {"type": "text", "text": ...}',
        ),
        (
            completion_request,
            {"prompt": ["secret"] * 65},
            "prompt: must be a text that is not empty, a list of token ids, or up to 64 of either",
        ),
        (score_request, {"text": ["secret"]}, "text: must be a text that is not empty, or a list of token ids"),
    ],
)
def test_a_field_of_several_shapes_is_told_in_one_sentence_which_and_how_many(
    check: Callable[[object], object], body: dict[str, object], sentence: str
) -> None:
    with pytest.raises(RequestError) as caught:
        check({**(CHAT if check is chat_request else {}), **body})
    assert caught.value.message == sentence


@pytest.mark.parametrize("body", [None, [], 3, "x", True])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    for check in (chat_request, completion_request, score_request):
        with pytest.raises(RequestError):
            check(body)


def test_neutral_values_and_nulls_are_accepted() -> None:
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "store": False,
        "stop": None,
        "max_tokens": None,
        "user": "me",
        "logit_bias": {},
    }
    asked = chat_request({**CHAT, **neutral})
    assert (asked.stop, asked.max_tokens) == ((), None)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1.0, 2], ((1, 2),)),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_completion_takes_texts_and_token_ids(prompt: object, expected: tuple[object, ...]) -> None:
    assert completion_request({"prompt": prompt}).prompts == expected


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_a_bad_completion_field_is_named(change: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        completion_request({"prompt": "x", **change})
    assert (caught.value.param or "").startswith(param)


def test_a_score_needs_exactly_one_of_text_and_messages() -> None:
    for body in ({}, {"text": "x", **CHAT}):
        with pytest.raises(RequestError):
            score_request(body)
    assert score_request({"text": [1, 2.0], "top": 3}).text == (1, 2)


def test_the_support_table_has_a_line_for_every_field() -> None:
    table = support_table()
    assert all(f"| `{field.name}` |" in table for field in FIELDS if field.endpoints != frozenset({"score"}))
    assert json.dumps(table)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted({field.name for field in FIELDS}))


@given(st.dictionaries(NAMES | st.text(max_size=4), JSON, max_size=4), st.booleans())
def test_no_json_body_raises_anything_but_a_request_error(body: dict[str, object], sound: bool) -> None:
    for check, needed in ((chat_request, CHAT), (completion_request, {"prompt": "x"}), (score_request, {"text": "x"})):
        with contextlib.suppress(RequestError):
            check({**needed, **body} if sound else body)


def test_the_documented_table_is_the_validators(repository: Path) -> None:
    for page in ("README.md", "docs/serving.md"):
        assert support_table() in (repository / page).read_text(), "make fix writes it"
