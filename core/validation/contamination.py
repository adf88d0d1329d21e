"""Rows whose question stands in an evaluation suite must not be trained (arrow: intake).

Reads    config/suites/*/items.jsonl of package and root; the suite `incoming` is exempt (its rows are held out)
Errors   a damaged suite is ConfigError: a gate that cannot compare refuses
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # suite items are JSON

from core.atomic import parse_written_json
from core.errors import ConfigError, JsonError
from core.validation.rows import TrainingRow, normal_text, prompt_digests, prompt_sha256

EXEMPT = "incoming"
_RUN = 13
_MIN_WORDS = 26
_LOOKED_AT = 64  # characters
_HEAD = 24
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class SuiteIndex:
    """Prompt hashes of all suites -> "suite/item"; and, for long prompts, their runs of 13 words."""

    by_prompt: Mapping[bytes, str]
    by_gram: Mapping[int, str] = field(default_factory=dict)
    grams_of: Mapping[str, int] = field(default_factory=dict)
    openings: Collection[str] = frozenset()  # the first two words of every question
    heads: frozenset[str] = frozenset()  # and its first characters

    @classmethod
    def read(cls, folders: Iterable[Path]) -> "SuiteIndex":
        """Read the suites below some folders. Raises ConfigError for a damaged one."""
        found: dict[bytes, str] = {}
        grams: dict[int, str] = {}
        counts: dict[str, int] = {}
        openings: set[str] = set()
        heads: set[str] = set()
        for folder in folders:
            for file in sorted(folder.glob("*/items.jsonl")):
                suite = file.parent.name
                if suite == EXEMPT or suite.startswith("."):
                    continue
                for item in _items(file):
                    name = f"{suite}/{item.get('id', '?')}"
                    found[bytes.fromhex(prompt_sha256(item))] = name
                    first = normal_text(_first_turn(item))
                    openings.add(" ".join(first.split(" ", 2)[:2]))
                    heads.add(first[:_HEAD].rstrip())
                    own = _grams(_question(item))
                    grams |= dict.fromkeys(own, name)
                    counts[name] = len(own)
        return cls(found, grams, counts, openings, frozenset(heads))

    def suspects(self, openings: Sequence[str]) -> list[int]:
        """Which of these rows' openings `may_hit`; quick where none does."""
        heads = [text[:_HEAD].rstrip() for text in openings]
        together, known = "|" + "|".join(heads), self.heads
        plain = together.isascii() and together.isprintable() and "  " not in together and "| " not in together
        if plain and known.isdisjoint(heads):
            return []  # `normal_text` would leave these heads as they are
        return [
            index
            for index, head in enumerate(heads)
            if (head in known or "  " in head or not (head.isascii() and head.isprintable()) or head[:1] == " ")
            and self.may_hit(openings[index])
        ]

    def may_hit(self, opening: str) -> bool:
        """Can a row that opens with this text ask what a suite asks? False spares it the hash of its whole question."""
        words = normal_text(opening[:_LOOKED_AT]).split(" ", 2)
        return len(words) < 3 or " ".join(words[:2]) in self.openings  # the third word shows that two are whole

    def overlap(self, row: TrainingRow) -> str | None:
        """Name the suite item of which this row's questions hold at least half the runs of 13 words."""
        if not self.by_gram:
            return None
        hits = Counter(self.by_gram[gram] for gram in _grams(_question(row)) if gram in self.by_gram)
        return next((name for name, count in hits.items() if count * 2 >= self.grams_of[name]), None)

    def hit(self, row: TrainingRow) -> str | None:
        """Name the suite item whose question this row would train; None when there is none."""
        if not self.by_prompt or not self.may_hit(_first_turn(row)):
            return None
        return next((self.by_prompt[d] for d in prompt_digests(row) if d in self.by_prompt), None)


def _first_turn(item: Mapping[str, Any]) -> str:
    """What the first turn but a system turn says; of a text row or a prompt, all of it."""
    if "messages" in item:
        return next((str(m["content"]) for m in item["messages"] if m["role"] != "system"), "")
    return str(item["prompt"] if "prompt" in item else item["text"])


def _question(item: Mapping[str, Any]) -> str:
    """All that is asked in a row or an item; a text row is its own question."""
    if "messages" in item:
        return " ".join(m["content"] for m in item["messages"] if m["role"] == "user")
    return str(item["prompt"] if "prompt" in item else item["text"])


def _grams(text: str) -> set[int]:
    """Runs of 13 words of a text of at least 26; hashes, which hold for one process."""
    words = _WORDS.findall(normal_text(text).casefold())
    if len(words) < _MIN_WORDS:
        return set()
    return {hash(tuple(words[start : start + _RUN])) for start in range(len(words) - _RUN + 1)}


def _items(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        fix = "mend the suite, or remove it"
        raise ConfigError(f"a suite cannot be read: {error.strerror}", where=str(file), fix=fix) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = parse_written_json(line, str(file), number)
        except JsonError as error:
            fix = "mend the line: one JSON object"
            raise ConfigError(f"a suite is damaged: {error.message}", where=error.where, fix=fix) from error
        yield _asked(item if isinstance(item, dict) else {}, f"{file}:{number}")


def _asked(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What an item asks, chosen as the judge does (trainer.evaluate.suites): text, else prompt, else messages.

    Raises:
        ConfigError: none of them can be read.
    """
    key = next((key for key in ("text", "prompt") if key in item), "messages")
    asked = item.get(key)
    turns = asked if key == "messages" else [{"role": "user", "content": asked}]
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        fix = 'give "prompt", "messages" or "text"'
        raise ConfigError("a suite is damaged: the item asks nothing that can be read", where=where, fix=fix)
    return {"id": item.get("id", "?"), key: asked}


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
