"""Evaluation suites (arrow: judge): what is asked, what is expected, and which suites decide.

Reads    config/suites/<name>/{suite.json,items.jsonl} (built-in, then the root's), checkpoints/<run>/incoming/*.jsonl
Format   suite.json {name, version, metric, role, tolerance, max_new_tokens};
         items {id, messages | prompt | text, expected, grader, choices, tags}, one a line
Errors   ConfigError naming the file and the line
Used by  the judge; a suite's shards are the unit in which results are kept and reused
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any  # rows and items are JSON documents

from core.atomic import parse_written_json, read_json, storage_error
from core.errors import ConfigError, JsonError, StorageError
from core.paths import Workspace
from trainer.evaluate.graders import check_expected, grader_names

INCOMING = "incoming"
GRADED_METRICS = ("exact_match", "accuracy", "score")
LOSS_METRICS = ("loss", "perplexity", "bits_per_token")
ROLES = ("primary", "guard", "report")
# These two are scored by likelihood, not by reading an answer.
MULTIPLE_CHOICE, PERPLEXITY = "multiple_choice", "perplexity"
# An answer longer than this is not waited for, whatever the expected answers are.
LONGEST_ANSWER_TOKENS = 512
INCOMING_ITEMS = 1000
# Exact match on `incoming` is reported, not decided on: a sample of the answers is enough, and of long answers it says
# nothing, while writing them took two thirds of a judgement (13 of 20 s on GSM8K, docs/log.md).
INCOMING_ANSWERS = 100
INCOMING_ANSWER_CHARACTERS = 120
# A guard of fewer items is asked whole.
SMALLEST_CUT = 32
_LONGEST_LINE_BYTES = 1 << 20
_SUITE_KEYS = {
    "name",
    "version",
    "metric",
    "role",
    "tolerance",
    "max_new_tokens",
    "description",
    "tier",
    "seed",
    "skill",
}
_ITEM_KEYS = {"id", "messages", "prompt", "text", "expected", "grader", "choices", "tags", "metadata"}

# What other tools call these.
_MEANT = {
    **dict.fromkeys(("question", "input", "instruction", "query"), "prompt"),
    **dict.fromkeys(("answer", "output", "completion", "response", "target", "gold", "label"), "expected"),
    **dict.fromkeys(("options", "alternatives"), "choices"),
    "conversations": "messages",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One question. `row` is what the loss is taken on (with the expected answer in it); None when it has no text."""

    id: str
    row: dict[str, Any] | None
    prompt: tuple[dict[str, str], ...] | None  # None: nothing is asked, only the loss is taken
    expected: object
    grader: str
    choices: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


Asked = tuple[Item, dict[str, Any]]  # with the line it came from


@dataclass(frozen=True, slots=True)
class Shard:
    """Items that are always scored together, in this order, so that their results can be reused bit for bit."""

    sha256: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Suite:
    """A named set of items with the metric that sums them up. Only the first `asked` shards count (None: all)."""

    name: str
    version: str
    metric: str
    role: str
    tolerance: float  # how far a guard may fall, in the metric's own unit
    max_new_tokens: int | None  # None: as many as the longest expected answer needs
    shards: tuple[Shard, ...]
    tags: dict[str, Any] = field(default_factory=dict)
    asked: int | None = None

    @property
    def asked_shards(self) -> tuple[Shard, ...]:
        return self.shards[: self.asked]

    @property
    def items(self) -> list[Item]:
        """The items that are asked, in the order of their results."""
        return [item for shard in self.asked_shards for item in shard.items]

    @property
    def size(self) -> int:
        """How many items there are, asked or not."""
        return sum(len(shard.items) for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Names the items that are asked: values of two suites with one sha256 can be compared."""
        return _digest([self.name, self.version, self.metric, *(shard.sha256 for shard in self.asked_shards)])

    @property
    def by_loss(self) -> bool:
        return self.metric in LOSS_METRICS


def load_suites(workspace: Workspace, only: str | None = None) -> list[Suite]:
    """Every suite on disk, by name; the root's replaces a built-in one of the same name.

    Raises:
        ConfigError: a suite cannot be read, or there is none called `only`.
    """
    folders: dict[str, Path] = {}
    for parent in workspace.suites_dirs():
        if parent.is_dir():
            folders |= {e.name: e for e in sorted(parent.iterdir()) if e.is_dir() and not e.name.startswith(".")}
    if only is not None:
        if only not in folders:
            names = ", ".join([INCOMING, *sorted(folders)])
            raise ConfigError(f"no suite {only!r}", where=str(workspace.own_suites_dir), fix=f"use one of {names}")
        folders = {only: folders[only]}
    return [load_suite(folders[name]) for name in sorted(folders)]


def load_suite(folder: Path) -> Suite:
    """Read one suite folder.

    Raises:
        ConfigError: naming the file, the line and the field.
        StorageError: the disk fails.
    """
    try:
        return _suite(folder)
    except JsonError as error:
        fix = error.fix or "mend it: suite.json is one JSON object, items.jsonl one a line"
        raise ConfigError(f"the suite is damaged: {error.message}", where=error.where, fix=fix) from error
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise
        fix = "a suite is a folder with suite.json and items.jsonl"
        raise ConfigError(f"the suite is damaged: {error.message}", where=error.where, fix=fix) from error


def _suite(folder: Path) -> Suite:
    path = folder / "suite.json"
    doc = read_json(path)
    if unknown := doc.keys() - _SUITE_KEYS:
        raise _unknown_key(min(unknown), _SUITE_KEYS, str(path), "take it out")
    metric, role = doc.get("metric", "exact_match"), doc.get("role", "primary")
    _one_of(metric, (*GRADED_METRICS, *LOSS_METRICS), "metric", path)
    _one_of(role, ROLES, "role", path)
    if doc.get("name", folder.name) != folder.name:
        raise ConfigError(
            f"the name is {doc['name']!r}, the folder {folder.name!r}", where=str(path), fix="make them equal"
        )
    tolerance, longest = doc.get("tolerance", 0.0), doc.get("max_new_tokens")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or tolerance < 0:
        raise ConfigError(f"tolerance is {tolerance!r}", where=str(path), fix="give a number of 0 or more")
    if longest is not None and (type(longest) is not int or not 1 <= longest <= LONGEST_ANSWER_TOKENS):
        fix = f"give a whole number from 1 to {LONGEST_ANSWER_TOKENS}"
        raise ConfigError(f"max_new_tokens is {longest!r}", where=str(path), fix=fix)
    items = _read_items(folder / "items.jsonl", metric)
    parts = _parts(items) if role == "guard" else [items]
    shards = tuple(
        Shard(_digest([[doc for _item, doc in part], metric, longest]), tuple(item for item, _doc in part))
        for part in parts
    )
    return Suite(folder.name, str(doc.get("version", 1)), metric, role, float(tolerance), longest, shards, doc)


def _parts(items: Sequence[Asked]) -> list[Sequence[Asked]]:
    """A guard's items in a fixed order that says nothing about them, cut so that 1/4, 1/2 or all can be asked."""
    if len(items) < SMALLEST_CUT:
        return [items]
    ordered = sorted(items, key=lambda one: hashlib.sha256(f"guard {one[0].id}".encode()).digest())
    ends = [0, len(items) // 4, len(items) // 2, len(items)]
    return [ordered[start:end] for start, end in pairwise(ends)]


def _one_of(value: object, allowed: Sequence[str], key: str, path: Path) -> None:
    if value not in allowed:
        raise ConfigError(f"{key} is {value!r}", where=str(path), fix=f"use one of {', '.join(allowed)}")


def _read_items(path: Path, metric: str) -> list[Asked]:
    lines = _json_lines(path, _LONGEST_LINE_BYTES)
    items = [(parse_item(doc, f"{path}:{number}", metric), doc) for number, doc in lines]
    seen: set[str] = set()
    for (item, _doc), (number, _line) in zip(items, lines, strict=True):
        if item.id in seen:
            raise ConfigError(
                f"the id {item.id!r} stands twice", where=f"{path}:{number}", fix="give each item its own id"
            )
        seen.add(item.id)
    if not items:
        raise ConfigError("the suite has no items", where=str(path), fix="add at least one line")
    return items


def _json_lines(path: Path, longest_bytes: int | None = None) -> list[tuple[int, dict[str, Any]]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise storage_error(error, path) from error
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    for number, line in lines:
        if longest_bytes is not None and len(line) > longest_bytes:
            why = f"the line has {len(line):,} bytes, and no model reads that as one question"
            raise ConfigError(why, where=f"{path}:{number}", fix=f"shorten it to {longest_bytes:,}")
    docs = [(number, parse_written_json(line, str(path), number)) for number, line in lines]
    for number, doc in docs:
        if not isinstance(doc, dict):
            raise ConfigError("the line is not a JSON object", where=f"{path}:{number}", fix="one {...} a line")
    return docs


def parse_item(doc: dict[str, Any], where: str, metric: str) -> Item:
    """Understand one line of items.jsonl. Raises ConfigError naming `where` and the field."""
    if unknown := doc.keys() - _ITEM_KEYS:
        raise _unknown_key(min(unknown), _ITEM_KEYS, where, 'take it out, or keep it in "metadata"')
    if len(questions := sorted(doc.keys() & {"messages", "prompt", "text"})) > 1:
        raise ConfigError(f"{' and '.join(questions)} stand side by side", where=where, fix="keep the one to be asked")
    identity = str(doc.get("id", where.rpartition(":")[2]))
    if not identity:
        raise ConfigError("the id is empty", where=where, fix="name the item, or leave id out")
    tags = tuple(str(tag) for tag in _list(doc, "tags", where))
    if "text" in doc:
        return Item(identity, {"text": _string(doc["text"], "text", where)}, None, None, PERPLEXITY, (), tags)
    grader = doc.get("grader", "exact_match")
    known = (*grader_names(), MULTIPLE_CHOICE, PERPLEXITY)
    if grader not in known:
        raise ConfigError(f"no grader {grader!r}", where=where, fix=f"use one of {', '.join(known)}")
    prompt = _prompt(doc, where)
    if "expected" not in doc:
        raise ConfigError("the item has no expected answer", where=where, fix='add "expected"')
    expected, choices = doc["expected"], tuple(_list(doc, "choices", where))
    if grader == MULTIPLE_CHOICE:
        expected = _choice(expected, choices, where)
    elif grader != PERPLEXITY:
        _readable(grader, expected, where)
    answer = _answer_text(expected, grader)
    row = {"messages": [*prompt, {"role": "assistant", "content": answer}]} if answer is not None else None
    asked = None if metric in LOSS_METRICS or grader == PERPLEXITY else tuple(prompt)
    if row is None and asked is None:
        raise ConfigError("nothing here can be scored", where=where, fix="give the expected answer as text")
    return Item(identity, row, asked, expected, grader, choices, tags)


def _unknown_key(key: str, known: Collection[str], where: str, otherwise: str) -> ConfigError:
    """What to do with a key: the name that is meant, where that can be told, and the names there are."""
    meant = _MEANT.get(key.lower(), "")
    near = [meant] if meant in known else difflib.get_close_matches(key.lower(), sorted(known), 1)
    first = f'call it "{near[0]}"' if near else otherwise
    return ConfigError(f"unknown key {key[:80]!r}", where=where, fix=f"{first} (known: {', '.join(sorted(known))})")


def _list(doc: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = doc.get(key, [])
    if not isinstance(value, list):
        raise ConfigError(f"{key} is {value!r:.80}", where=where, fix=f'give a list: "{key}": [...]')
    return value


def _readable(grader: str, expected: object, where: str) -> None:
    try:
        check_expected(grader, expected)
    except ConfigError as error:
        fix = error.fix or f"mend expected, or use another grader than {grader}"
        raise ConfigError(f"expected: {error.message}", where=where, fix=fix) from error


def _prompt(doc: dict[str, Any], where: str) -> list[dict[str, str]]:
    if "prompt" in doc:
        return [{"role": "user", "content": _string(doc["prompt"], "prompt", where)}]
    messages = doc.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ConfigError("the item asks nothing", where=where, fix='give "prompt" or "messages"')
    turns = [
        {"role": _string(m.get("role"), "role", where), "content": _string(m.get("content"), "content", where)}
        for m in messages
        if isinstance(m, dict)
    ]
    if len(turns) != len(messages) or turns[-1]["role"] == "assistant":
        raise ConfigError("messages must be objects and end before the answer", where=where, fix="move it to expected")
    return turns


def _string(value: object, key: str, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} is not a text", where=where, fix="give a string that is not empty")
    return value


def _choice(expected: object, choices: Sequence[object], where: str) -> str:
    """The right choice as text; `expected` names it by its text or by its position from 0."""
    if len(choices) >= 2 and len(set(map(str, choices))) == len(choices) and all(isinstance(c, str) for c in choices):
        if type(expected) is int and 0 <= expected < len(choices):
            return str(choices[expected])
        if expected in choices:
            return str(expected)
    raise ConfigError(
        "expected is none of the choices", where=where, fix="give at least two different texts and one of them"
    )


def _answer_text(expected: object, grader: str) -> str | None:
    """The expected answer as the text to take the loss on, when it is one."""
    if grader in ("regex", "json_schema"):
        return None
    first = expected[0] if isinstance(expected, list) and expected else expected
    if isinstance(first, int | float) and not isinstance(first, bool):
        return str(first)
    return first if isinstance(first, str) and first else None


def incoming_suite(workspace: Workspace, run: str, job_ids: Iterable[str]) -> Suite:
    """The held-out rows of these jobs as a suite: one shard a job, in the order of training.

    A row that several jobs hold out counts once, for the first. Above INCOMING_ITEMS rows a share of 1/2, 1/4, ...
    is kept by a hash of the row, so that a new file changes older shards only when the total has doubled.
    """
    rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    seen: set[str] = set()
    for job_id in job_ids:
        path = workspace.incoming_dir(run) / f"{job_id}.jsonl"
        if job_id in rows or not path.is_file():
            continue
        fresh = [(str(doc["sha256"]), doc) for _number, doc in _json_lines(path) if doc.get("sha256") not in seen]
        rows[job_id] = list(dict(fresh).items())
        seen.update(sha for sha, _doc in fresh)
    kept = thinned(seen, INCOMING_ITEMS)
    short = {sha for group in rows.values() for sha, doc in group if sha in kept and _has_short_answer(doc)}
    asked = thinned(short, INCOMING_ANSWERS)
    shards = []
    for group in rows.values():
        items = tuple(_incoming_item(sha, doc, sha in asked) for sha, doc in group if sha in kept)
        if items:
            shards.append(Shard(_digest([[item.id, item.prompt is not None] for item in items]), items))
    return Suite(INCOMING, "live", "loss", "primary", 0.0, None, tuple(shards))


def thinned(names: Iterable[str], cap: int) -> set[str]:
    """At most `cap` of the names: all of them, or the share 2^-k of smallest hashes that fits."""
    ranks = {name: int.from_bytes(hashlib.sha256(f"judge {name}".encode()).digest()[:8]) for name in names}
    limit = 1 << 64
    while sum(rank < limit for rank in ranks.values()) > cap:
        limit >>= 1
    return {name for name, rank in ranks.items() if rank < limit}


def _has_short_answer(doc: Mapping[str, Any]) -> bool:
    turns = doc.get("messages") or [{"role": "", "content": ""}]
    answer = turns[-1]["content"]
    return len(turns) > 1 and turns[-1]["role"] == "assistant" and len(answer) <= INCOMING_ANSWER_CHARACTERS


def _incoming_item(sha256: str, doc: dict[str, Any], asked: bool) -> Item:
    if "text" in doc:
        return Item(sha256, {"text": doc["text"]}, None, None, PERPLEXITY)
    messages = doc["messages"]
    prompt = tuple(messages[:-1]) if asked else None
    return Item(sha256, {"messages": messages}, prompt, messages[-1]["content"], "exact_match")


def deciding(suites: Iterable[Suite]) -> list[Suite]:
    """The primary suites: those that were added, else `incoming` alone."""
    primary = [suite for suite in suites if suite.role == "primary"]
    added = [suite for suite in primary if suite.name != INCOMING]
    return added or primary


def _digest(doc: object) -> str:
    canonical = json.dumps(doc, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()
