"""Many good rows at once: a typed decoder made from the JSON Schema of a spec (arrow: intake, layer 1).

The schema stays the truth. What the decoder takes, strict JSON, the schema and the order of turns take too, with the
same canonical JSON (a test holds them to each other); what it does not take may still be good, and is looked at row by
row. A schema that says more than is understood here has no typed decoder, and its rows take that road as well.
"""

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple  # types are made at run time

import msgspec

from core.formats.strict_json import count_quotes, has_odd_escapes
from core.validation.rows import USUAL_ORDERS, shaped
from core.validation.specs import DatasetSpec

_NOTES = {"$schema", "$id", "title", "description", "kind", "version", "columns"}
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1  # larger ones are left to the slow road
# patterns that every dialect of regular expressions reads alike
_PLAIN_PATTERN = re.compile(r"\\S|\^?(?:[A-Za-z0-9_ /:-]|\[[A-Za-z0-9-]+\])+")
_encode = msgspec.json.Encoder().encode_lines


class Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One turn; fields in the order of canonical JSON."""

    content: str
    role: str


class Chat(msgspec.Struct, gc=False):
    """A training row of turns."""

    messages: list[Turn]


class Text(msgspec.Struct, gc=False):
    """A training row of plain text."""

    text: str


class PlainRows(NamedTuple):
    """Good rows: the canonical JSON of what is trained, and what is asked first (all of a plain text)."""

    texts: list[bytes]
    openings: list[str]


class TypedRows:
    """Reads blocks of rows of one spec."""

    def __init__(self, spec: DatasetSpec, row_type: type) -> None:
        self._kind = spec.kind
        self._decode: Callable[[bytes], list[Any]] = msgspec.json.Decoder(row_type).decode_lines
        turn = spec.schema["properties"].get("messages", {}).get("items", {})
        self._has_plain_turns = spec.kind == "chat" and set(turn["properties"]) == {"content", "role"}

    def read(self, text: bytes, count: int) -> PlainRows | None:
        """Read `count` rows, each closed by LF, begun by { and ended by }; None where one is not plainly good."""
        if has_odd_escapes(text):
            return None
        try:
            rows = self._decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if len(rows) != count:
            return None
        trained = self._trained(rows)
        written = _encode(trained)
        if not self._all_quotes(text, rows, written):
            return None  # a key that stands twice was swallowed
        openings = [row.text for row in trained] if self._kind == "text" else _openings(trained)
        return PlainRows(written[:-1].split(b"\n"), openings) if openings is not None else None

    def _all_quotes(self, text: bytes, rows: list[Any], written: bytes) -> bool:
        """Does every quote of a text stand in its rows? What is trained tells it at once where it can only have fewer,
        not where rows are turned into chats: names added there would make up for those of a swallowed key.
        """
        quotes = count_quotes(text)
        shorter = self._kind == "text" or self._has_plain_turns
        return (shorter and count_quotes(written) == quotes) or count_quotes(_encode(rows)) == quotes

    def _trained(self, rows: list[Any]) -> list[Any]:  # generated structs -> Text, or Chat
        if self._kind == "text":
            return [Text(row.text) for row in rows]
        if self._has_plain_turns:
            return [Chat(row.messages) for row in rows]
        chats: list[Any] = msgspec.convert([shaped(row, self._kind) for row in msgspec.to_builtins(rows)], list[Chat])
        return chats


def _openings(rows: Sequence[Chat]) -> list[str] | None:
    """What is asked first in each row; None unless all are in order: system first if at all, user and assistant in
    turn, no silent assistant. Long chats are left to the slow road.
    """
    chats = [row.messages for row in rows]
    turns = list(chain.from_iterable(chats))
    roles = [turn.role for turn in turns]
    if set(map(len, chats)) == {2} and roles == ["user", "assistant"] * len(chats):  # the common case, quickly
        answers = [turn.content for turn in turns[1::2]]
        openings = [turn.content for turn in turns[::2]]
    elif USUAL_ORDERS.issuperset([tuple([turn.role for turn in chat]) for chat in chats]):
        answers = [turn.content for turn in turns if turn.role == "assistant"]
        openings = [chat[chat[0].role == "system"].content for chat in chats]
    else:
        return None
    return None if not all(answers) or any(map(str.isspace, answers)) else openings


@lru_cache(maxsize=32)
def typed_rows(spec: DatasetSpec) -> TypedRows | None:
    """The typed decoder of a spec; None when its schema says more than is understood here."""
    try:
        return TypedRows(spec, _type_of({key: value for key, value in spec.schema.items() if key not in _NOTES}))
    except _Untyped:
        return None


class _Untyped(Exception):
    """A schema that has no type here."""


def _type_of(schema: Mapping[str, Any]) -> Any:  # a type
    rest = {key: value for key, value in schema.items() if key != "description"}
    if set(rest) in ({"enum"}, {"const"}):
        values = tuple(rest.get("enum", [rest.get("const")]))
        if all(isinstance(value, str) for value in values):
            return Literal[values]
        raise _Untyped
    kind = rest.pop("type", None)
    if isinstance(kind, list) and not rest:
        return reduce(lambda left, right: left | right, [_type_of({"type": one}) for one in kind])
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise _Untyped
    return make(rest)


def _only(rest: Mapping[str, Any], *known: str) -> None:
    if not rest.keys() <= set(known):
        raise _Untyped


def _string(rest: Mapping[str, Any]) -> Any:  # a type
    _only(rest, "minLength", "pattern")
    if not _PLAIN_PATTERN.fullmatch(rest.get("pattern", "x")):
        raise _Untyped
    return Annotated[str, msgspec.Meta(min_length=rest.get("minLength", 0), pattern=rest.get("pattern"))]


def _integer(rest: Mapping[str, Any]) -> Any:  # a type
    _only(rest, "minimum", "maximum")
    low, high = max(rest.get("minimum", _INT_MIN), _INT_MIN), min(rest.get("maximum", _INT_MAX), _INT_MAX)
    if type(low) is not int or type(high) is not int:
        raise _Untyped
    return Annotated[int, msgspec.Meta(ge=low, le=high)]


def _array(rest: Mapping[str, Any]) -> Any:  # a type
    _only(rest, "items", "minItems", "maxItems")
    if not isinstance(rest.get("items"), Mapping):
        raise _Untyped
    meta = msgspec.Meta(min_length=rest.get("minItems", 0), max_length=rest.get("maxItems"))
    return Annotated[list.__class_getitem__(_type_of(rest["items"])), meta]


def _object(rest: Mapping[str, Any]) -> Any:  # a type
    """A struct of the properties that have a type; a row that has one of the others is looked at by the slow road."""
    _only(rest, "additionalProperties", "required", "properties")
    required = set(rest.get("required", ()))
    if rest.get("additionalProperties") is not False or not required <= set(rest["properties"]):
        raise _Untyped
    fields: list[Any] = []
    for name, schema in sorted(rest["properties"].items()):
        attribute = f"{name}_" if keyword.iskeyword(name) else name
        try:
            if not attribute.isidentifier() or attribute.startswith("_"):
                raise _Untyped
            kind = _type_of(schema)
        except _Untyped:
            if name in required:
                raise
            continue
        where = msgspec.field(name=name) if name in required else msgspec.field(name=name, default=msgspec.UNSET)
        fields.append((attribute, kind if name in required else kind | msgspec.UnsetType, where))
    return msgspec.defstruct("Row", fields, kw_only=True, forbid_unknown_fields=True, gc=False)


_MAKERS = {"string": _string, "integer": _integer, "array": _array, "object": _object}
