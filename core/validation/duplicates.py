"""How many rows of a file are the same, or nearly, as others in it and in files before it (gates; background child).

Reads    the parts of a RowIndex          Writes   the file's own parts, into a folder it is given
Units    lines count from 1, shares 0..1
Effects  memory is bounded by one part, whatever the file's size
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # facts are JSON

import numpy as np

from core.validation.rows import TrainingRow
from core.validation.sketches import PART_ROWS, Matches, Part, Sketcher, match

_PAIRS_KEPT = 20
_FILES_NAMED = 5


@dataclass(frozen=True, slots=True)
class Earlier:
    """Rows to compare with. `job_ids` are the jobs that count; the parts may hold others too.

    Attributes:
        name_of: the name of a job's file, safe to show.
    """

    parts: Collection[Part] = ()
    job_ids: Collection[str] = frozenset()
    name_of: Callable[[str], str] = str


@dataclass(slots=True)
class DuplicateFacts:
    """What was found. `seen_before` are equal to a row of an earlier file, the others are alike."""

    rows: int = 0
    seen_before: int = 0
    near_before: int = 0
    near_in_file: int = 0
    lines: dict[str, list[int]] = field(default_factory=lambda: {"seen_before": [], "near_duplicate": []})
    files: Counter[str] = field(default_factory=Counter)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self, name_of: Callable[[str], str]) -> dict[str, Any]:
        """The same as JSON; files and pairs only as examples."""
        return {
            "rows": self.rows,
            "seen_before": self.seen_before,
            "near_before": self.near_before,
            "near_in_file": self.near_in_file,
            "files": [
                {"job_id": job_id, "file": name_of(job_id), "rows": rows}
                for job_id, rows in self.files.most_common(_FILES_NAMED)
            ],
            "pairs": self.pairs,
        }


class DuplicateSearch:
    """Takes the rows of one file in order; call `finish`, then read `facts`.

    Args:
        job_id: under which the rows are kept.
        folder: where the file's own parts go; empty or missing.
    """

    def __init__(self, job_id: str, earlier: Earlier, folder: Path) -> None:
        self._job_id = job_id
        self.earlier = earlier
        self._folder = folder
        self._sketch = Sketcher()
        self._own: list[Part] = []
        self._signatures: list[Any] = []  # arrays [64]
        self._digests: list[bytes] = []
        self._lines: list[int] = []
        self.facts = DuplicateFacts()

    def look(self, line: int, digest: bytes, row: TrainingRow) -> None:
        """Take one row and its SHA-256."""
        self._signatures.append(self._sketch(row))
        self._digests.append(digest[:8])
        self._lines.append(line)
        if len(self._lines) >= PART_ROWS:
            self.finish()

    def finish(self) -> None:
        """Compare and store what is left over. Raises OSError."""
        if not self._lines:
            return
        rows = len(self._lines)
        hashes = np.frombuffer(b"".join(self._digests), dtype="<u8").astype(np.uint64)
        lines, jobs = np.array(self._lines, dtype=np.uint32), np.zeros(rows, np.uint32)
        block = Part.of((self._job_id,), np.stack(self._signatures), hashes, lines, jobs)
        self._signatures, self._digests, self._lines = [], [], []
        before, inside = Matches.none(rows), Matches.none(rows)
        for part in self.earlier.parts:
            counts = np.array([job_id in self.earlier.job_ids for job_id in part.job_ids])
            if counts.any():
                match(block, part, counts, before)
        for part in [*self._own, block]:
            match(block, part, np.ones(1, np.bool_), inside)
        self._note(block, before, inside)
        folder = self._folder / f"{len(self._own):06}"
        block.save(folder)
        self._own.append(Part.open(folder))

    def _note(self, block: Part, before: Matches, inside: Matches) -> None:
        """Count each row once: seen before, else nearly seen before, else alike in this file."""
        facts = self.facts
        facts.rows += len(block)
        near_before = (before.alike > 0) & ~before.exact
        near_inside = (
            (inside.alike > 0) & ~inside.exact & ~(before.alike > 0)
        )  # equal rows in a file are counted elsewhere
        facts.seen_before += int(before.exact.sum())
        facts.near_before += int(near_before.sum())
        facts.near_in_file += int(near_inside.sum())
        facts.files.update(job_id for job_id in before.job if job_id)
        for code, rows in (("seen_before", before.exact), ("near_duplicate", near_before | near_inside)):
            kept = facts.lines[code]
            kept += block.lines[np.flatnonzero(rows)[: _PAIRS_KEPT - len(kept)]].tolist()
        for found, rows in ((before, before.alike > 0), (inside, near_inside)):
            for row in np.flatnonzero(rows)[: _PAIRS_KEPT - len(facts.pairs)].tolist():
                other = {"job_id": found.job[row] if found is before else None, "line": int(found.line[row])}
                alike = round(float(found.alike[row]), 2)
                facts.pairs.append({"line": int(block.lines[row]), "other": other, "alike": alike})
