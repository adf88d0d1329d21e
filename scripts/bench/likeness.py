"""How fast rows are compared with others, and how much an indexed row takes: `python -m scripts.bench.likeness`.

Prints   CPU seconds on one thread, bytes, megabytes; beside ours the same with datasketch's own MinHashLSH in memory
"""

import argparse
import hashlib
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH

from core.validation.duplicates import DuplicateSearch, Earlier
from core.validation.sketches import PART_ROWS, Matches, Part, Sketcher, match

Rows = list[dict[str, Any]]


def made_rows(count: int) -> Rows:
    """Chat rows of about 600 characters, all different."""
    rng = random.Random(0)  # noqa: S311  # no secret
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5_000)]
    turn = "user", "assistant"
    return [
        {"messages": [{"role": r, "content": " ".join(rng.choices(words, k=45))} for r in turn]} for _ in range(count)
    ]


def ours(rows: Rows, folder: Path) -> float:
    """CPU seconds to sketch all rows, compare them with each other and store them."""
    began = time.process_time()
    search = DuplicateSearch("job", Earlier(), folder)
    for line, row in enumerate(rows, 1):
        search.look(line, hashlib.sha256(repr(row).encode()).digest(), row)
    search.finish()
    return time.process_time() - began


def theirs(rows: Rows, hashes: int) -> float:
    """The same with datasketch alone, as its documentation does it."""
    began = time.process_time()
    index = MinHashLSH(threshold=0.8, num_perm=hashes)
    for line, row in enumerate(rows):
        words = " ".join(message["content"] for message in row["messages"]).split()
        sketch = MinHash(num_perm=hashes)
        for start in range(len(words) - 2):
            sketch.update(" ".join(words[start : start + 3]).encode())
        index.query(sketch)
        index.insert(str(line), sketch)
    return time.process_time() - began


def random_part(rows: int, rng: np.random.Generator) -> Part:
    signatures = rng.integers(0, 1 << 32, (rows, 64), dtype=np.uint32)
    lines = np.arange(rows, dtype=np.uint32)
    hashes = rng.integers(0, 1 << 63, rows).astype(np.uint64)
    return Part.of(("job",), signatures, hashes, lines, np.zeros(rows, np.uint32))


def history(parts: int, folder: Path) -> None:
    """What it costs to compare with many rows on the disk."""
    rng = np.random.default_rng(0)
    for number in range(parts):
        random_part(PART_ROWS, rng).save(folder / str(number))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    stored = [Part.open(folder / str(number)) for number in range(parts)]
    print(f"history: {parts * PART_ROWS} rows, {size / parts / PART_ROWS:.0f} bytes a row")
    for rows in (1, PART_ROWS):
        block, began = random_part(rows, rng), time.process_time()
        for part in stored:
            match(block, part, np.ones(1, np.bool_), Matches.none(rows))
        print(f"  {rows} rows against it: {time.process_time() - began:.4f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--parts", type=int, default=20)
    options = parser.parse_args()
    rows = made_rows(options.rows)
    Sketcher()(rows[0])  # loads scipy
    with tempfile.TemporaryDirectory() as folder:
        seconds = ours(rows, Path(folder) / "own")
        print(f"ours, 64 numbers, on the disk: {options.rows / seconds:.0f} rows a CPU second")
        history(options.parts, Path(folder) / "history")
    print(f"peak so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB")
    some = rows[: options.rows // 4]
    for hashes in (64, 128):
        print(f"datasketch alone, {hashes} numbers: {len(some) / theirs(some, hashes):.0f} rows a CPU second")


if __name__ == "__main__":
    main()
