"""Answers that keep to a JSON Schema: every token that would leave it is forbidden (inside the inference server; torch-
free).

The grammar engine is llguidance (MIT; the extra `json`), asked for one mask a token. A schema comes from a stranger: it
is first compiled in a process with limits (schema_trial.py), then here with limits of its own on every step.
Errors   RequestError naming the field; SchemaTooHardError while an answer is under way
"""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any  # Any: jsonschema_rs gives its validators no public type

import jsonschema_rs
import numpy as np

from core.atomic import parse_json
from core.errors import JsonError
from inference.generation import LogitsRow
from inference.protocol import SCHEMA_FIELD, RequestError
from inference.sampling import RuleError
from inference.schema_trial import compile_schema, explained, require_library, try_schema, validator_of

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from core.chat_templates import ChatEncoder

_KEPT = 8  # compiled schemas a checkpoint keeps


class SchemaTooHardError(RuleError):
    """The schema compiled, but what it allows after this text takes too long to work out."""


class SchemaRule:
    """One answer's way through a schema. Made for one choice; the generation thread alone uses it."""

    def __init__(self, matcher: "LLMatcher", validator: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._validator = validator
        self._vocabulary = vocabulary
        self._mask = np.zeros((vocabulary + 31) // 32, dtype=np.int32)

    def restrict(self, scores_V: LogitsRow) -> None:
        """Forbid, in place, what must not come next. Raises SchemaTooHardError."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise SchemaTooHardError(f"{SCHEMA_FIELD}: {explained(self._matcher.get_error())}")
        allowed = np.unpackbits(self._mask.view(np.uint8), count=self._vocabulary, bitorder="little")
        scores_V[allowed == 0] = -np.inf

    def take(self, token: int) -> None:
        """The token that was drawn. Raises SchemaTooHardError."""
        if not self._matcher.consume_token(token):
            raise SchemaTooHardError(f"{SCHEMA_FIELD}: {explained(self._matcher.get_error())}")

    @property
    def ended(self) -> bool:
        """True when nothing but an end token may follow."""
        return bool(self._matcher.is_stopped())

    def kept_by(self, text: str) -> bool:
        """Whether the whole text is a document of the schema, every key once."""
        try:
            return bool(self._validator.is_valid(parse_json(text.encode(), "answer")))
        except (JsonError, jsonschema_rs.ValidationError):
            return False


class Constraints:
    """The rules one checkpoint can follow; its tokenizer is read when the first is asked for. Thread-safe."""

    def __init__(self, encoder: "ChatEncoder", vocabulary: int) -> None:
        self._encoder = encoder
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, tuple[LLMatcher, Any]] = OrderedDict()

    def rules(self, schema: str, count: int) -> list[SchemaRule]:
        """Rules for the choices of one request. Raises RequestError: not a schema that can be followed."""
        require_library()
        problem = try_schema(schema)
        if problem is not None:
            raise RequestError(f"{SCHEMA_FIELD}: {problem}", param=SCHEMA_FIELD, code="invalid_json_schema")
        with self._lock:
            matcher, validator = self._compile(schema)
            return [SchemaRule(matcher.deep_copy(), validator, self._vocabulary) for _ in range(count)]

    def _compile(self, schema: str) -> "tuple[LLMatcher, Any]":
        known = self._compiled.get(schema)
        if known is None:
            known = compile_schema(schema, self._read_tokenizer()), validator_of(schema)
            probe = known[0].deep_copy()
            probe.compute_bitmask()
            if probe.is_error():
                raise RequestError(
                    f"{SCHEMA_FIELD}: {explained(probe.get_error())}", param=SCHEMA_FIELD, code="invalid_json_schema"
                )
        self._compiled[schema] = known
        self._compiled.move_to_end(schema)
        while len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return known

    def _read_tokenizer(self) -> "LLTokenizer":
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            ends = sorted(self._encoder.eos_ids)
            self._tokenizer = LLTokenizer(self._encoder.tokenizer_json(), n_vocab=self._vocabulary, eos_token=ends)
        return self._tokenizer
