"""MinHash signatures of rows, and finding the rows that are alike (background child; gates with a limit).

Format   a signature is a MinHash (datasketch) of 64 numbers over a row's runs of three words, as uint32; a key is the
         hash of four of them, or opens the row's own hash. Stored as plain .npy arrays, never as datasketch's pickles
Errors   ValueError, OSError, JsonError for a part that is damaged or of another version
Effects  memory is bounded by one part however many there are: stored arrays are mapped, not read
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.atomic import parse_json
from core.validation.rows import TrainingRow, normal_text

ALIKE = 0.8  # share of equal numbers in two signatures from which two rows are near duplicates
PART_ROWS = 16_384
_HASHES = 64
_BANDS = 16
_RUN = 3
_RUN_CHARS = 5
_LONG_WORD = 16  # characters a word, on average, from which a text has no words
_MOST_CHARS = 100_000  # of a row; megabytes take hundreds of megabytes to sketch
_VERSION = f"rows.v1/minhash-affine32-{_HASHES}-{_RUN}"
_LOOKED_AT = 3  # rows of one key that are compared: alike rows share many keys, and one of them is enough

Uint32s = NDArray[np.uint32]
Uint64s = NDArray[np.uint64]


class Sketcher:
    """Makes signatures; the permutations are drawn once."""

    def __init__(self) -> None:
        from datasketch import MinHash  # loads scipy, 0.4 s: only where likeness is looked for

        self._empty = MinHash(num_perm=_HASHES, seed=1, scheme="affine32")

    def __call__(self, row: TrainingRow) -> Uint32s:
        """The signature of one training row, uint32 [64]."""
        sketch = self._empty.copy()
        sketch.update_batch([run.encode() for run in _runs(normal_text(_text_of(row)[:_MOST_CHARS]).casefold())])
        return np.asarray(sketch.hashvalues, dtype=np.uint32)


def _runs(text: str) -> set[str]:
    """Runs of three words; of five characters where words are not set apart, as in Chinese, Japanese or Thai."""
    words = text.split()
    if len(text) > _LONG_WORD * len(words):
        return {text[start : start + _RUN_CHARS] for start in range(max(1, len(text) - _RUN_CHARS + 1))}
    return {" ".join(words[start : start + _RUN]) for start in range(max(1, len(words) - _RUN + 1))}


def _text_of(row: TrainingRow) -> str:
    return row["text"] if "text" in row else " ".join(message["content"] for message in row["messages"])


def _keys(signatures: Uint32s, hashes: Uint64s) -> Uint64s:
    """Keys of rows, uint64 [rows, 17]: one a band of four numbers, the last the row's own hash."""
    bands = signatures.reshape(len(signatures), _BANDS, _HASHES // _BANDS).astype(np.uint64)
    mixed = np.tile(np.arange(1, _BANDS + 1, dtype=np.uint64), (len(signatures), 1))
    for column in range(bands.shape[2]):
        mixed = (mixed ^ bands[:, :, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return np.column_stack([mixed, hashes])


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some rows that can be searched.

    Shapes, for n rows: keys and owners [17 n], sorted by key; signatures [n, 64]; hashes, lines and jobs [n].

    Attributes:
        job_ids: what the numbers in `jobs` stand for.
        owners: the row to which each key belongs.
        hashes: the first 8 bytes of each row's SHA-256.
    """

    job_ids: tuple[str, ...]
    keys: Uint64s
    owners: Uint32s
    signatures: Uint32s
    hashes: Uint64s
    lines: Uint32s
    jobs: Uint32s

    @classmethod
    def of(cls, job_ids: Sequence[str], signatures: Uint32s, hashes: Uint64s, lines: Uint32s, jobs: Uint32s) -> "Part":
        """Make rows searchable; equal keys stay in the order of their rows."""
        keys = _keys(signatures, hashes)
        order = np.argsort(keys.reshape(-1), kind="stable")
        owners = (order // keys.shape[1]).astype(np.uint32)
        return cls(tuple(job_ids), keys.reshape(-1)[order], owners, signatures, hashes, lines, jobs)

    @classmethod
    def joined(cls, parts: Sequence["Part"]) -> "Part":
        """Several parts as one."""
        ids = tuple(dict.fromkeys(job_id for part in parts for job_id in part.job_ids))
        numbers = [np.array([ids.index(job_id) for job_id in part.job_ids], dtype=np.uint32) for part in parts]
        return cls.of(
            ids,
            np.concatenate([part.signatures for part in parts]),
            np.concatenate([part.hashes for part in parts]),
            np.concatenate([part.lines for part in parts]),
            np.concatenate([own[part.jobs] for own, part in zip(numbers, parts, strict=True)]),
        )

    def __len__(self) -> int:
        return len(self.lines)

    def save(self, folder: Path) -> None:
        """Write the part into a new folder. Raises OSError."""
        folder.mkdir(parents=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", np.ascontiguousarray(getattr(self, name)), allow_pickle=False)
        (folder / "head.json").write_text(json.dumps({"version": _VERSION, "jobs": self.job_ids}))

    @classmethod
    def open(cls, folder: Path) -> "Part":
        """Map a part. Raises ValueError, LookupError, TypeError, OSError or JsonError when it cannot be used."""
        head = parse_json((folder / "head.json").read_bytes(), str(folder))
        if head["version"] != _VERSION:
            raise ValueError(f"made by another version: {head['version']}")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        part = cls(tuple(head["jobs"]), **arrays)
        part._check()
        return part

    def _check(self) -> None:
        """A damaged part must not point outside of itself. Raises ValueError."""
        rows = len(self)
        shapes = {"keys": ((_BANDS + 1) * rows,), "owners": ((_BANDS + 1) * rows,), "signatures": (rows, _HASHES)}
        for name in _ARRAYS:
            array = getattr(self, name)
            if array.shape != shapes.get(name, (rows,)) or array.dtype != _ARRAYS[name]:
                raise ValueError(f"{name} has shape {array.shape} for {rows} rows")
        if not all(isinstance(job_id, str) for job_id in self.job_ids):
            raise ValueError("its jobs are no texts")
        if int(self.owners.max()) >= rows or int(self.jobs.max()) >= len(self.job_ids):
            raise ValueError("it points at rows that it does not have")


_ARRAYS = {f.name: np.uint64 if f.name in ("keys", "hashes") else np.uint32 for f in fields(Part)[1:]}


@dataclass(slots=True)
class Matches:
    """The best like of each row of a block; shapes [rows].

    Attributes:
        alike: share of equal numbers in the two signatures; 0 where no row is alike.
        exact: the two rows are equal.
        line, job: where the other one stands.
    """

    alike: NDArray[np.float32]
    exact: NDArray[np.bool_]
    line: Uint32s
    job: list[str]

    @classmethod
    def none(cls, rows: int) -> "Matches":
        """Nothing found yet."""
        return cls(np.zeros(rows, np.float32), np.zeros(rows, np.bool_), np.zeros(rows, np.uint32), [""] * rows)


def match(block: Part, other: Part, eligible: NDArray[np.bool_], found: Matches) -> None:
    """Compare the rows of a block with those of another part, or with those before them in the block itself.

    Args:
        eligible: which jobs of `other` count, bool [jobs of other].
        found: improved where a better match turns up.
    """
    left = np.searchsorted(other.keys, block.keys, "left")
    right = np.searchsorted(other.keys, block.keys, "right")
    queries = np.flatnonzero(right > left)
    pairs = []
    for offset in range(_LOOKED_AT):
        queries = queries[left[queries] + offset < right[queries]]
        mine, theirs = block.owners[queries].astype(np.int64), other.owners[left[queries] + offset].astype(np.int64)
        counts = theirs < mine if other is block else eligible[other.jobs[theirs]]
        pairs.append(mine[counts] << 32 | theirs[counts])
    both = np.unique(np.concatenate(pairs))
    if len(both):
        _take_better(block, other, both >> 32, both & 0xFFFFFFFF, found)


def _take_better(block: Part, other: Part, mine: NDArray[np.int64], theirs: NDArray[np.int64], found: Matches) -> None:
    exact = block.hashes[mine] == other.hashes[theirs]
    alike = (block.signatures[mine] == other.signatures[theirs]).mean(axis=1, dtype=np.float32)
    for at in np.flatnonzero(exact | (alike >= ALIKE)).tolist():
        row, candidate = int(mine[at]), int(theirs[at])
        if (exact[at], alike[at]) > (found.exact[row], found.alike[row]):
            found.exact[row], found.alike[row] = exact[at], alike[at]
            found.line[row] = other.lines[candidate]
            found.job[row] = other.job_ids[other.jobs[candidate]]
