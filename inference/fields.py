"""The table of request fields: name, shape, meaning and how far each is supported (inside the inference server; torch-
free).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # JSON Schema fragments

_CHAT, _TEXT, _SCORE = "chat", "completions", "score"
_GENERATE = frozenset({_CHAT, _TEXT})
_EVERY = frozenset({_CHAT, _TEXT, _SCORE})
_TOKEN_ID = {"type": "integer", "minimum": 0}
_TOKEN_IDS = {"type": "array", "items": _TOKEN_ID, "minItems": 1}
MOST_STOPS, MOST_PROMPTS = 16, 64
_STOP = {"type": "string", "minLength": 1, "maxLength": 1000}
_TEXT_GIVEN = {"type": "string", "minLength": 1}


def _either(title: str, *shapes: Mapping[str, Any]) -> dict[str, Any]:
    """One of several shapes; the title is what a caller is told whose value is none of them."""
    return {"title": title, "anyOf": list(shapes)}


def _up_to(most: int, item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": _either(
            'a text, or a list of parts {"type": "text", "text": ...}',
            {"type": "string"},
            {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                    "required": ["type", "text"],
                    "additionalProperties": False,
                },
            },
        ),
        "name": {"type": "null"},
        "refusal": {"type": "null"},
        "tool_calls": {"type": ["array", "null"], "maxItems": 0},
        "function_call": {"type": "null"},
        "audio": {"type": "null"},
        "annotations": {"type": ["array", "null"], "maxItems": 0},
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request body. `neutral_only`: accepted only with values that change nothing."""

    name: str
    endpoints: frozenset[str]
    schema: Mapping[str, Any]
    doc: str
    required: bool = False
    neutral_only: bool = False


def _neutral(name: str, schema: Mapping[str, Any], doc: str, endpoints: frozenset[str] = frozenset({_CHAT})) -> Field:
    return Field(name, endpoints, schema, doc, neutral_only=True)


FIELDS: tuple[Field, ...] = (
    Field(
        "model",
        _EVERY,
        {"type": "string", "minLength": 1, "maxLength": 200},
        "`dropforge` (the serving one) or a checkpoint id",
    ),
    Field(
        "messages",
        frozenset({_CHAT}),
        {"type": "array", "items": _MESSAGE, "minItems": 1},
        "the chat; content as text or text parts",
        True,
    ),
    Field(
        "messages",
        frozenset({_SCORE}),
        {"type": "array", "items": _MESSAGE, "minItems": 1},
        "a chat, scored with the checkpoint's template; the assistant's turns count",
    ),
    Field(
        "text",
        frozenset({_SCORE}),
        _either("a text that is not empty, or a list of token ids", _TEXT_GIVEN, _TOKEN_IDS),
        "a text or token ids; every token counts",
    ),
    Field(
        "top", frozenset({_SCORE}), {"type": "integer", "minimum": 0, "maximum": 20}, "alternatives reported a position"
    ),
    Field(
        "prompt",
        frozenset({_TEXT}),
        _either(
            f"a text that is not empty, a list of token ids, or up to {MOST_PROMPTS} of either",
            _TEXT_GIVEN,
            _up_to(MOST_PROMPTS, _TEXT_GIVEN),
            _TOKEN_IDS,
            _up_to(MOST_PROMPTS, _TOKEN_IDS),
        ),
        "a text, several, token ids, or several of those",
        True,
    ),
    Field(
        "max_tokens",
        frozenset({_CHAT}),
        {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "cut to what the context leaves; default all of it",
    ),
    Field(
        "max_tokens",
        frozenset({_TEXT}),
        {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
        "default 16; 0 with `echo` scores the prompt only",
    ),
    Field(
        "max_completion_tokens",
        frozenset({_CHAT}),
        {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "the newer name of `max_tokens`",
    ),
    Field(
        "temperature",
        _GENERATE,
        {"type": "number", "minimum": 0, "maximum": 2},
        "default 1; 0 is greedy and repeatable",
    ),
    Field("top_p", _GENERATE, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "default 1"),
    Field("top_k", _GENERATE, {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "default 0 (off); an extension"),
    Field(
        "n", _GENERATE, {"type": "integer", "minimum": 1, "maximum": 16}, "choices, each with a generator of its own"
    ),
    Field(
        "stop",
        _GENERATE,
        _either(
            f"a text of 1 to {_STOP['maxLength']} characters, or a list of at most {MOST_STOPS} such texts",
            _STOP,
            {"type": "array", "items": _STOP, "maxItems": MOST_STOPS},
        ),
        f"up to {MOST_STOPS} texts; found across token boundaries, never shown",
    ),
    Field("stream", _GENERATE, {"type": "boolean"}, "server-sent events"),
    Field(
        "stream_options",
        _GENERATE,
        {
            "type": "object",
            "properties": {"include_usage": {"type": "boolean"}, "include_obfuscation": {"const": False}},
            "additionalProperties": False,
        },
        "`include_usage` adds a last chunk with the token counts",
    ),
    Field(
        "seed",
        _GENERATE,
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        "the same seed gives the same text from the same checkpoint on a CPU",
    ),
    Field("logprobs", frozenset({_CHAT}), {"type": "boolean"}, "log-probability of each token"),
    Field("logprobs", frozenset({_TEXT}), {"type": "integer", "minimum": 0, "maximum": 20}, "alternatives a token"),
    Field(
        "top_logprobs",
        frozenset({_CHAT}),
        {"type": "integer", "minimum": 0, "maximum": 20},
        "alternatives a token; needs `logprobs`",
    ),
    Field(
        "logit_bias",
        _GENERATE,
        {
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "maxProperties": 1024,
        },
        "added to the logits of token ids",
    ),
    Field(
        "presence_penalty", _GENERATE, {"type": "number", "minimum": -2, "maximum": 2}, "on tokens already generated"
    ),
    Field(
        "frequency_penalty", _GENERATE, {"type": "number", "minimum": -2, "maximum": 2}, "on tokens already generated"
    ),
    Field(
        "echo", frozenset({_TEXT}), {"type": "boolean"}, "the prompt in front of the answer, with its log-probabilities"
    ),
    Field("best_of", frozenset({_TEXT}), {"type": "integer", "minimum": 1, "maximum": 16}, "only when equal to `n`"),
    Field(
        "response_format",
        frozenset({_CHAT}),
        {
            "type": "object",
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "json_schema": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                        "description": {"type": "string"},
                        "schema": {"type": "object"},
                        "strict": {"type": ["boolean", "null"]},
                    },
                    "required": ["name", "schema"],
                    "additionalProperties": False,
                },
            },
            "required": ["type"],
            "additionalProperties": False,
        },
        "`json_schema`, `json_object`: the answer keeps to it; needs the extra `json` on the server",
    ),
    Field("user", _GENERATE, {"type": "string"}, "accepted, unused"),
    Field("metadata", frozenset({_CHAT}), {"type": "object"}, "accepted, unused"),
    Field("safety_identifier", frozenset({_CHAT}), {"type": "string"}, "accepted, unused"),
    Field("prompt_cache_key", frozenset({_CHAT}), {"type": "string"}, "accepted, unused"),
    _neutral("store", {"const": False}, "only false"),
    _neutral("service_tier", {"enum": ["auto", "default"]}, "only auto or default"),
    _neutral("tools", {"type": "array", "maxItems": 0}, "only an empty list"),
    _neutral("tool_choice", {"enum": ["none", "auto"]}, "only none or auto"),
    _neutral("parallel_tool_calls", {"type": "boolean"}, "without tools it changes nothing"),
    _neutral("functions", {"type": "array", "maxItems": 0}, "only an empty list"),
    _neutral("function_call", {"enum": ["none", "auto"]}, "only none or auto"),
    _neutral("modalities", {"const": ["text"]}, 'only ["text"]'),
    _neutral("suffix", {"const": ""}, "only the empty text", frozenset({_TEXT})),
)


def body_schema(endpoint: str) -> dict[str, Any]:
    """The closed JSON Schema of an endpoint's body: `chat`, `completions` or `score`."""
    fields = [field for field in FIELDS if endpoint in field.endpoints]
    return {
        "type": "object",
        "properties": {field.name: {**field.schema, "description": field.doc} for field in fields},
        "required": [field.name for field in fields if field.required],
        "additionalProperties": False,
    }


def support_table() -> str:
    """The README's table of fields, as Markdown."""
    lines = ["| field | chat | completions | meaning |", "|---|---|---|---|"]
    names = dict.fromkeys(field.name for field in FIELDS if field.endpoints & _GENERATE)
    for name in names:
        here = [field for field in FIELDS if field.name == name and field.endpoints & _GENERATE]
        cells = [next((_mark(f) for f in here if endpoint in f.endpoints), "-") for endpoint in (_CHAT, _TEXT)]
        docs = "; ".join(dict.fromkeys(field.doc for field in here))
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} | {docs} |")
    return "\n".join(lines) + "\n"


def _mark(field: Field) -> str:
    return "neutral value" if field.neutral_only else "yes"
