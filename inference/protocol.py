"""What a caller may ask: the fields of each endpoint, checked before anything is computed (inside the inference server;
torch-free).

One table of fields makes the validator, the OpenAPI document and the README's table, so they cannot disagree. A field
that would change
the answer and is not supported is refused by name unless it has its neutral value.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any  # a request body is JSON of any shape until it is checked here

import jsonschema_rs

from core.errors import UsageError
from inference.fields import FIELDS, Field, body_schema
from inference.sampling import Sampling

MAX_SCHEMA_CHARACTERS = 64_000
SCHEMA_FIELD = "response_format.json_schema.schema"
_DEFAULT_COMPLETION_TOKENS = 16  # the API we imitate does the same for /v1/completions


class RequestError(UsageError):
    """The caller's mistake. `param` names the field, `slug` is the machine-readable code."""

    slug = "invalid_value"

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.slug = code
        self.http_status = status


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A checked request for text.

    Attributes:
        messages: the chat, roles system|user|assistant; None for a plain completion.
        prompts: texts or token ids of a plain completion.
        max_tokens: None: as many as the context holds.
        logprobs: None, or how many alternatives to report a token (0: only the token's own).
        schema: JSON Schema the answer keeps to, as JSON text; None: any text.
    """

    model: str
    messages: tuple[Mapping[str, str], ...] | None
    prompts: tuple[str | tuple[int, ...], ...]
    sampling: Sampling
    max_tokens: int | None
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: int | None
    echo: bool
    schema: str | None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A checked request for the loss of a text (`text` or `messages`). `top`: alternatives a position."""

    model: str
    messages: tuple[Mapping[str, str], ...] | None
    text: str | tuple[int, ...] | None
    top: int


@cache
def _validator(endpoint: str) -> "Any":  # jsonschema_rs gives its validators no public type
    return jsonschema_rs.validator_for(body_schema(endpoint))


def check_body(body: object, endpoint: str) -> dict[str, Any]:
    """Check a parsed body against the table of fields. Top-level nulls count as absent.

    Raises:
        RequestError: 400 naming the first bad field.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    known: dict[str, Field] = {field.name: field for field in FIELDS if endpoint in field.endpoints}
    for name in given:
        if name not in known:
            raise RequestError(f"unknown field {name!r}", param=name[:100], code="unknown_parameter")
    for error in _validator(endpoint).iter_errors(given):
        path = list(error.instance_path)
        name = str(path[0]) if path else _missing(error.message)
        field = known.get(name)
        if field is not None and field.neutral_only:
            raise RequestError(f"{name} is not supported here ({field.doc})", param=name, code="unsupported_parameter")
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".") or name
        raise RequestError(f"{where}: {_told(error, endpoint)}", param=where)
    return given


def _missing(message: str) -> str:
    return message.split('"')[1] if '"' in message else ""


def _told(error: "Any", endpoint: str) -> str:  # of jsonschema_rs
    """What is wrong with a value; where it may have several shapes, these, since none of their faults says it."""
    *path, keyword = error.schema_path
    if keyword != "anyOf":
        return _short(error.message)
    part: Any = body_schema(endpoint)
    for step in path:
        part = part[step]
    return f"must be {part['title']}"


def _short(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:90]} ... {message[-90:]}"


def chat_request(body: object) -> GenerationRequest:
    """Check a body of /v1/chat/completions. Raises RequestError."""
    given = check_body(body, "chat")
    if given.get("top_logprobs") is not None and not given.get("logprobs"):
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise RequestError("give max_tokens or max_completion_tokens, not both", param="max_tokens")
    logprobs = int(given.get("top_logprobs", 0)) if given.get("logprobs") else None
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    schema = _schema(given.get("response_format", {"type": "text"}))
    return _generation(given, _messages(given["messages"]), (), logprobs, limit, echo=False, schema=schema)


def _schema(response_format: Mapping[str, Any]) -> str | None:
    """The schema an answer must keep to, as JSON text. Raises RequestError."""
    kind, described = response_format["type"], response_format.get("json_schema")
    if (kind == "json_schema") != (described is not None):
        raise RequestError(
            "response_format: json_schema goes with the type json_schema", param="response_format.json_schema"
        )
    if kind == "text":
        return None
    text = json.dumps({"type": "object"} if described is None else described["schema"], ensure_ascii=False)
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise RequestError(
            f"the schema has {len(text)} characters, at most {MAX_SCHEMA_CHARACTERS} are read", param=SCHEMA_FIELD
        )
    return text


def completion_request(body: object) -> GenerationRequest:
    """Check a body of /v1/completions. Raises RequestError."""
    given = check_body(body, "completions")
    best_of = given.get("best_of", 1)
    if best_of not in (1, given.get("n", 1)):
        raise RequestError("best_of other than n is not supported", param="best_of", code="unsupported_parameter")
    prompts = _prompts(given["prompt"])
    limit = int(given.get("max_tokens", _DEFAULT_COMPLETION_TOKENS))
    echo = bool(given.get("echo", False))
    if limit == 0 and not echo:
        raise RequestError("max_tokens 0 needs echo: true", param="max_tokens")
    if echo and given.get("stream"):
        raise RequestError("echo with stream is not supported", param="echo", code="unsupported_parameter")
    logprobs = int(given["logprobs"]) if "logprobs" in given else None
    return _generation(given, None, prompts, logprobs, limit, echo=echo)


def score_request(body: object) -> ScoreRequest:
    """Check a body of /v1/score. Raises RequestError."""
    given = check_body(body, "score")
    messages, text = given.get("messages"), given.get("text")
    if (messages is None) == (text is None):
        raise RequestError("give either messages or text", param="messages")
    chat = _messages(messages) if messages is not None else None
    ids = text if isinstance(text, str) or text is None else _ids(text)
    return ScoreRequest(_model(given), chat, ids, int(given.get("top", 0)))


def _generation(
    given: Mapping[str, Any],
    messages: tuple[Mapping[str, str], ...] | None,
    prompts: tuple[str | tuple[int, ...], ...],
    logprobs: int | None,
    limit: int | None,
    *,
    echo: bool,
    schema: str | None = None,
) -> GenerationRequest:
    stop = given.get("stop", ())
    stream = bool(given.get("stream", False))
    if "stream_options" in given and not stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    sampling = Sampling(
        temperature=float(given.get("temperature", 1.0)),
        top_p=float(given.get("top_p", 1.0)),
        top_k=int(given.get("top_k", 0)),
        seed=int(given["seed"]) if "seed" in given else None,
        presence_penalty=float(given.get("presence_penalty", 0.0)),
        frequency_penalty=float(given.get("frequency_penalty", 0.0)),
        logit_bias={int(token): float(bias) for token, bias in given.get("logit_bias", {}).items()},
    )
    return GenerationRequest(
        model=_model(given),
        messages=messages,
        prompts=prompts,
        sampling=sampling,
        max_tokens=None if limit is None else int(limit),
        n=int(given.get("n", 1)),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stream=stream,
        include_usage=bool(given.get("stream_options", {}).get("include_usage", False)),
        logprobs=logprobs,
        echo=echo,
        schema=schema,
    )


def _model(given: Mapping[str, Any]) -> str:
    return str(given.get("model", "dropforge"))


def _messages(raw: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, str], ...]:
    """Text parts joined, `developer` read as `system`. Raises RequestError for a message without text."""
    messages = []
    for place, message in enumerate(raw):
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        if content is None:
            raise RequestError(f"messages[{place}].content: a text is needed", param=f"messages[{place}].content")
        role = "system" if message["role"] == "developer" else message["role"]
        messages.append({"role": role, "content": encodable(content, f"messages[{place}].content")})
    return tuple(messages)


def _prompts(raw: Any) -> tuple[str | tuple[int, ...], ...]:  # checked by the schema: text, ids, or lists of either
    if isinstance(raw, str):
        return (encodable(raw, "prompt"),)
    if isinstance(raw[0], int | float):
        return (_ids(raw),)
    return tuple(encodable(p, "prompt") if isinstance(p, str) else _ids(p) for p in raw)


def _ids(raw: Sequence[float]) -> tuple[int, ...]:
    """Token ids; JSON Schema counts 3.0 among the integers, and so do we."""
    return tuple(int(token) for token in raw)


def refuse_half_characters(body: object) -> None:
    """Refuse half a surrogate pair anywhere in a parsed body: no tokenizer, no log and no answer can hold it.

    Raises:
        RequestError: naming the top-level field when its name can be written.
    """
    parts = body.items() if isinstance(body, dict) else [("", body)]
    for name, part in parts:
        try:
            json.dumps([name, part], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            param = name.encode(errors="replace").decode()
            raise RequestError(f"{param}: half a surrogate pair", param=param or None) from error


def encodable(text: str, param: str) -> str:
    """Refuse lone surrogates, which no tokenizer can encode. Raises RequestError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{param}: half a surrogate pair at character {error.start}", param=param) from error
    return text
