"""Rows whose question stands in an evaluation suite must not be trained (arrow: intake).

Reads    config/suites/*/items.jsonl of package and root; the suite `incoming` is exempt (its rows are held out)
Errors   a damaged suite is ConfigError: a gate that cannot compare refuses
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # suite items are JSON

from core.atomic import parse_json
from core.errors import ConfigError, JsonError
from core.validation.rows import TrainingRow, prompt_digests, prompt_sha256

EXEMPT = "incoming"


@dataclass(frozen=True, slots=True)
class SuiteIndex:
    """Prompt hashes of all suites -> "suite/item"."""

    by_prompt: Mapping[bytes, str]

    @classmethod
    def read(cls, folders: Iterable[Path]) -> "SuiteIndex":
        """Read the suites below some folders. Raises ConfigError for a damaged one."""
        found: dict[bytes, str] = {}
        for folder in folders:
            for file in sorted(folder.glob("*/items.jsonl")):
                suite = file.parent.name
                if suite != EXEMPT and not suite.startswith("."):
                    found |= {bytes.fromhex(prompt_sha256(i)): f"{suite}/{i.get('id', '?')}" for i in _items(file)}
        return cls(found)

    def hit(self, row: TrainingRow) -> str | None:
        """Name the suite item whose question this row would train; None when there is none."""
        if not self.by_prompt:
            return None
        return next((self.by_prompt[d] for d in prompt_digests(row) if d in self.by_prompt), None)


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
