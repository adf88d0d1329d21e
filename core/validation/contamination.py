"""Rows whose question stands in an evaluation suite must not be trained (arrow: intake).

Reads    config/suites/*/items.jsonl of package and root; the suite `incoming` is exempt (its rows are held out)
Errors   a damaged suite is ConfigError: a gate that cannot compare refuses
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # suite items are JSON

from core.atomic import parse_json
from core.errors import ConfigError, JsonError
from core.validation.rows import TrainingRow, normal_text, prompt_digests, prompt_sha256

EXEMPT = "incoming"
_RUN = 13
_MIN_WORDS = 26
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class SuiteIndex:
    """Prompt hashes of all suites -> "suite/item"; and, for long prompts, their runs of 13 words."""

    by_prompt: Mapping[bytes, str]
    by_gram: Mapping[int, str] = field(default_factory=dict)
    grams_of: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, folders: Iterable[Path]) -> "SuiteIndex":
        """Read the suites below some folders. Raises ConfigError for a damaged one."""
        found: dict[bytes, str] = {}
        grams: dict[int, str] = {}
        counts: dict[str, int] = {}
        for folder in folders:
            for file in sorted(folder.glob("*/items.jsonl")):
                suite = file.parent.name
                if suite == EXEMPT or suite.startswith("."):
                    continue
                for item in _items(file):
                    name = f"{suite}/{item.get('id', '?')}"
                    found[bytes.fromhex(prompt_sha256(item))] = name
                    own = _grams(_question(item))
                    grams |= dict.fromkeys(own, name)
                    counts[name] = len(own)
        return cls(found, grams, counts)

    def overlap(self, row: TrainingRow) -> str | None:
        """Name the suite item of which this row's questions hold at least half the runs of 13 words."""
        if not self.by_gram:
            return None
        hits = Counter(self.by_gram[gram] for gram in _grams(_question(row)) if gram in self.by_gram)
        return next((name for name, count in hits.items() if count * 2 >= self.grams_of[name]), None)

    def hit(self, row: TrainingRow) -> str | None:
        """Name the suite item whose question this row would train; None when there is none."""
        if not self.by_prompt:
            return None
        return next((self.by_prompt[d] for d in prompt_digests(row) if d in self.by_prompt), None)


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
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                item = parse_json(line, f"{file}:{number}")
            except JsonError as error:
                raise ConfigError(f"a suite is damaged: {error.message}", where=error.where) from error
            if not isinstance(item, dict) or not ("messages" in item or "prompt" in item):
                raise ConfigError("a suite item lacks messages or prompt", where=f"{file}:{number}")
            yield item
