"""Answers keep to their schema whatever the model wants; schemas that cannot be followed are refused by name."""

import json
import sys
import time
from typing import Any

import jsonschema
import numpy as np
import pytest

from core.chat_templates import ChatEncoder
from inference.assembler import TextAssembler
from inference.constrained import Constraints, SchemaRule
from inference.protocol import RequestError, chat_request
from inference.sampling import RuleError, Sampler, Sampling
from inference.schema_trial import try_schema
from trainer.models.tiny_tokenizer import write_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
        "next": {"anyOf": [{"$ref": "#/$defs/day"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags", "next"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "string", "format": "date"}},
}
TREE = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    TREE,
    {"type": "object"},
    {"type": "array", "prefixItems": [{"const": {"x": [1, "ⓐ"]}}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": "string", "pattern": "^[①⓪]{3,9}$"},
    {"type": "number", "minimum": 1.5, "exclusiveMaximum": 2.25},
    {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]},
    {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"a": {"minimum": 5}}}],
     "type": "object"},
]  # fmt: skip
CLOSERS = ['"', "}", "]", "1", "0", ","]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return ChatEncoder.from_folder(folder)


@pytest.fixture(scope="module")
def constraints(encoder: ChatEncoder) -> Constraints:
    return Constraints(encoder, encoder.vocabulary_size)


def answer(encoder: ChatEncoder, rule: SchemaRule, seed: int, most: int = 300, **how: Any) -> tuple[str, bool]:
    """What a model of random logits says under a rule, and whether it came to its own end."""
    noise = np.random.default_rng(seed)
    sampler, assembler = Sampler(Sampling(seed=seed, **how), 0, rule), TextAssembler(encoder)
    liked = [i for text in CLOSERS for i in encoder.encode_text(text)] + sorted(encoder.eos_ids)
    for _ in range(most):
        logits_V = noise.normal(0, 2, encoder.vocabulary_size).astype(np.float32)
        logits_V[liked] += 6  # else it would open brackets for ever
        token = sampler.draw(logits_V)
        if token not in encoder.eos_ids:
            assembler.push(token)
        if token in encoder.eos_ids or rule.ended:
            assembler.finish()
            return assembler.text, True
    assembler.finish()
    return assembler.text, False


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:40])
def test_every_answer_that_ends_parses_and_validates(
    encoder: ChatEncoder, constraints: Constraints, schema: dict[str, Any]
) -> None:
    ended = 0
    for seed in range(6):
        for how in ({"temperature": 0.0}, {"temperature": 1.3, "top_p": 0.9, "top_k": 40}):
            (rule,) = constraints.rules(json.dumps(schema), 1)
            text, whole = answer(encoder, rule, seed, **how)
            ended += whole
            if whole:
                jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
                assert rule.kept_by(text)
    assert ended >= 3


def test_choices_of_one_request_have_rules_of_their_own(encoder: ChatEncoder, constraints: Constraints) -> None:
    first, second = constraints.rules(json.dumps(PERSON), 2)
    one = answer(encoder, first, 1)
    assert answer(encoder, second, 1) == one


def test_no_bias_opens_what_the_schema_forbids(encoder: ChatEncoder, constraints: Constraints) -> None:
    (rule,) = constraints.rules(json.dumps({"enum": ["yes", "no"]}), 1)
    ids = {i: 100.0 for i in encoder.encode_text("maybe")} | dict.fromkeys(encoder.eos_ids, 100.0)
    text, whole = answer(encoder, rule, 3, temperature=1.0, logit_bias=ids)
    assert whole
    assert text in ('"yes"', '"no"')


def test_a_key_that_stands_twice_is_no_whole_answer(constraints: Constraints) -> None:
    (rule,) = constraints.rules('{"type": "object"}', 1)
    assert rule.kept_by('{"a": 1}')
    for text in ('{"a": 1, "a": 2}', '{"a": 1', '{"a": NaN}', "[]", ""):
        assert not rule.kept_by(text)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#"},
        {"$schema": "http://example.org/own", "type": "string"},
        {"type": "array", "uniqueItems": True},
        {"not": {"type": "string"}},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "(((a{1,100}){1,100}){1,100}){1,100}b"},
        {"type": "string", "format": "nonsense"},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True},
        {"type": "integer", "multipleOf": 1_000_000_007},
        {"allOf": [{"type": "string", "pattern": f".*[ab].{{{i}}}c"} for i in range(30)]},
        {"enum": [f"value {i}" for i in range(20_000)]},
    ],
    ids=lambda s: json.dumps(s)[:50],
)
def test_a_schema_that_cannot_be_followed_is_refused_by_its_field(
    constraints: Constraints, schema: dict[str, Any]
) -> None:
    with pytest.raises(RequestError) as caught:
        asked = chat_request(
            {
                "messages": [{"role": "user", "content": "x"}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            }
        )
        constraints.rules(asked.schema or "", 1)
    assert caught.value.param == "response_format.json_schema.schema"
    assert caught.value.http_status == 400
    assert len(caught.value.message) < 400


def test_a_schema_nested_a_thousand_deep_is_refused(constraints: Constraints) -> None:
    deep = '{"items":' * 900 + '{"type":"integer"}' + "}" * 900
    with pytest.raises(RequestError):
        constraints.rules(deep, 1)


def test_a_schema_is_tried_once(constraints: Constraints) -> None:
    schema = json.dumps({"const": "once"})
    assert try_schema(schema) is None
    before = try_schema.cache_info().hits
    constraints.rules(schema, 1)
    assert try_schema.cache_info().hits == before + 1


def test_what_becomes_too_hard_on_the_way_ends_with_the_field_named(
    encoder: ChatEncoder, constraints: Constraints
) -> None:
    (rule,) = constraints.rules(json.dumps({"type": "string", "pattern": ".*a.{40}$"}), 1)
    began = time.process_time()
    sampler = Sampler(Sampling(seed=1), 0, rule)
    noise = np.random.default_rng(1)
    with pytest.raises(RuleError, match="response_format"):
        for _ in range(20_000):
            sampler.draw(noise.normal(0, 2, encoder.vocabulary_size).astype(np.float32))
    assert time.process_time() - began < 60  # seconds; ends by itself, however slow the machine


def test_without_the_library_the_answer_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, constraints: Constraints
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install 'dropforge\[json\]'") as caught:
        constraints.rules("{}", 1)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "text", "json_schema": {"name": "x", "schema": {}}}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": []}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "more": 1}}, "response_format.json_schema"),
        ({"type": "grammar"}, "response_format.type"),
    ],
)
def test_a_malformed_response_format_is_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat_request({"messages": [{"role": "user", "content": "x"}], "response_format": given})
    assert caught.value.param == param
