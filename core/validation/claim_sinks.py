"""Where the rows of an accepted file go: the claim folder (arrow: intake -> queue).

Writes   tokens/ (rows to train), `.held_out.jsonl` (one {"sha256", "row", "messages"|"text"} a line) and
         NAME.rejected.jsonl (rows set aside or dropped, with the reason), all built aside
Effects  nothing is kept unless `keep` is called; held-out and set-aside files are fsynced
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import orjson

from core.atomic import fsync_dir
from core.chat_templates import Encoded
from core.formats import RowProblem
from core.job_queue import SET_ASIDE_SUFFIX, TOKENS_FOLDER
from core.validation.rows import TrainingRow
from core.validation.token_cache import TokenCacheWriter

HELD_OUT_FILE = ".held_out.jsonl"


class ClaimSinks:
    """Collects what one inspection lets through. Close it whatever happens."""

    def __init__(self, folder: Path, data_file: Path) -> None:
        self._folder = folder
        self._targets = {
            "held_out": folder / HELD_OUT_FILE,
            "set_aside": folder / f"{data_file.name}{SET_ASIDE_SUFFIX}",
        }
        self._files: dict[str, BinaryIO] = {}
        self._cache: TokenCacheWriter | None = None
        for name, target in self._targets.items():
            if os.path.lexists(target):  # False for a name that has no room for the suffix
                target.unlink()
            self._aside(name).unlink(missing_ok=True)

    def _aside(self, name: str) -> Path:
        return self._folder / f".{name}.tmp"

    def _write(self, name: str, doc: dict[str, object]) -> None:
        if name not in self._files:
            self._files[name] = self._aside(name).open("wb")
        self._files[name].write(orjson.dumps(doc) + b"\n")

    def held_out(self, row_number: int, row_hash: bytes, row: TrainingRow) -> None:
        self._write("held_out", {"sha256": row_hash.hex(), "row": row_number, **row})

    def set_aside(self, row_number: int, line: int, problem: RowProblem, value: object) -> None:
        reason = {"code": problem.code, "message": problem.message, "field": problem.field}
        kept = value.text if isinstance(value, RowProblem) else value
        self._write("set_aside", {"row": row_number, "line": line, **reason, "value": kept})

    def train(self, row_numbers: Sequence[int], row_hashes: Sequence[bytes], encoded: Sequence[Encoded]) -> None:
        if self._cache is None:
            self._cache = TokenCacheWriter(self._folder / TOKENS_FOLDER)
        self._cache.extend(encoded, row_numbers, row_hashes)

    def keep(self, fingerprint: str | None) -> None:
        """Put everything under its final name; the token cache only with the fingerprint it was made with."""
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            self._aside(name).replace(self._targets[name])
        self._files.clear()
        if self._cache is not None and fingerprint is not None:
            self._cache.finish(fingerprint)
            self._cache = None
        fsync_dir(self._folder)

    def close(self) -> None:
        """Remove what was not kept."""
        for name, file in self._files.items():
            file.close()
            self._aside(name).unlink(missing_ok=True)
        self._files.clear()
        if self._cache is not None:
            self._cache.abandon()
            self._cache = None
