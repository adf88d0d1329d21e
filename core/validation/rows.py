"""A row of any spec -> what is trained, and its identity (gates, trainer, judge, verify: all through here).

Format   a training row is {"messages": [{"role", "content"}, ...]} or {"text": ...}, nothing else
Units    hashes are SHA-256: of a row over canonical JSON (sorted keys, UTF-8, no spaces), of a prompt over its
         normalised turns
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any  # rows are JSON

import orjson

from core.formats.rows import RowProblem
from core.validation.specs import DatasetSpec

TrainingRow = dict[str, Any]
USUAL_ORDERS = {(*system, *("user", "assistant") * n) for system in ((), ("system",)) for n in range(1, 9)}
_ORDER_FIX = "put the turns in order: system first if at all, then user and assistant in turn"
_LAST_FIX = "end the row with the assistant's answer, or remove the row"
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """Give the file's columns our names. A row without a mapped column keeps what it has; the schema will say."""
    if not columns:
        return row
    ours = {theirs: our for our, theirs in columns.items()}
    return {ours.get(key, key): value for key, value in row.items()}


def training_row(row: Mapping[str, Any], spec: DatasetSpec, columns: Mapping[str, str] | None = None) -> TrainingRow:
    """Turn a row that fits its spec into what is trained.

    Args:
        columns: our field names to the file's (from the sidecar); None takes the spec's own.
    """
    row = rename_columns(row, spec.columns if columns is None else columns)
    return shaped(row, spec.kind)


def shaped(row: Mapping[str, Any], kind: str) -> TrainingRow:
    """The training row of a row whose columns bear our names already."""
    if kind == "chat":
        return {"messages": [{"content": m["content"], "role": m["role"]} for m in row["messages"]]}
    if kind == "text":
        return {"text": row["text"]}
    if kind == "prompt_completion":
        return _one_turn(row["prompt"], row["completion"])
    if kind == "alpaca":
        about = row.get("input") or ""
        return _one_turn(f"{row['instruction']}\n\n{about}" if about else row["instruction"], row["output"])
    turns = [(_SHAREGPT_ROLES.get(turn["from"], turn["from"]), turn["value"]) for turn in row["conversations"]]
    return {"messages": [{"content": content, "role": role} for role, content in turns]}


def _one_turn(prompt: str, answer: str) -> TrainingRow:
    return {"messages": [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]}


def row_chars(row: Mapping[str, Any]) -> int:
    """Characters of all texts of a training row."""
    return len(row["text"]) if "text" in row else sum([len(turn["content"]) for turn in row["messages"]])


def canonical_json(row: Mapping[str, Any]) -> bytes:
    """A training row in the one spelling that is hashed."""
    return orjson.dumps(row, option=orjson.OPT_SORT_KEYS)


def row_sha256(row: Mapping[str, Any]) -> bytes:
    """Identity of a training row: 32 bytes."""
    return hashlib.sha256(canonical_json(row)).digest()


def order_problem(row: TrainingRow, spec: DatasetSpec) -> RowProblem | None:
    """Check the order of turns: system first if at all, then user and assistant in turn, the assistant last."""
    messages = row.get("messages")
    if messages is None or _is_plain_chat(messages):
        return None
    start = 1 if messages[0]["role"] == "system" else 0
    expected = "user"
    for index in range(start, len(messages)):
        role = messages[index]["role"]
        if role != expected:
            return _turn(spec, index, f"the role is {role!r} where {expected!r} comes", "role", _ORDER_FIX)
        if role == "assistant" and not messages[index]["content"].strip():
            return _turn(spec, index, "the assistant says nothing", "content", "write the answer, or remove the row")
        expected = "assistant" if role == "user" else "user"
    if expected == "assistant" or len(messages) == start:
        return _turn(spec, len(messages) - 1, "the last turn is not the assistant's", "role", _LAST_FIX)
    return None


def _is_plain_chat(messages: Sequence[Mapping[str, str]]) -> bool:
    """The common case, quickly: turns in order, no silent answer."""
    if tuple([m["role"] for m in messages]) not in USUAL_ORDERS:
        return False
    return not any(m["role"] == "assistant" and (not m["content"] or m["content"].isspace()) for m in messages)


def _turn(spec: DatasetSpec, index: int, message: str, part: str, fix: str) -> RowProblem:
    field = {
        "chat": f"$.messages[{index}].{part}",
        "sharegpt": f"$.conversations[{index}].{'from' if part == 'role' else 'value'}",
        "alpaca": "$.output",
    }.get(spec.kind, "$.completion")
    return RowProblem("spec_mismatch", f"not {spec.name}: {message} (turn {index + 1})", None, field, fix)


def normal_text(text: str) -> str:
    """NFC, white space collapsed: two spellings of one prompt become one."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def prompt_sha256(item: Mapping[str, Any]) -> str:
    """Identity of a question: all turns before the last answer, without system turns; 64 hex characters.

    Args:
        item: a training row, or a suite item with "messages" or "prompt". A text row is its own prompt.
    """
    if "messages" in item:
        messages: Sequence[Mapping[str, str]] = item["messages"]
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        turns = [m for m in messages if m["role"] != "system"]
    else:
        turns = [{"role": "user", "content": item["prompt"] if "prompt" in item else item["text"]}]
    digest = hashlib.sha256()
    for turn in turns:
        _add_turn(digest, turn)
    return digest.hexdigest()


def prompt_digests(row: TrainingRow) -> Iterator[bytes]:
    """The prompt hash of every answer in a row: whatever is trained was asked somehow."""
    messages = row.get("messages")
    if messages is None:
        yield bytes.fromhex(prompt_sha256(row))
        return
    digest = hashlib.sha256()
    for message in messages:
        if message["role"] == "assistant":
            yield digest.digest()
        if message["role"] != "system":
            _add_turn(digest, message)


def _add_turn(digest: "hashlib._Hash", turn: Mapping[str, str]) -> None:
    digest.update(f"{turn['role']}\0{normal_text(turn['content'])}\0".encode())
