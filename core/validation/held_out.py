"""Which rows of a file are never trained but judged with (arrow: intake; the suite `incoming`).

Reads    checkpoints/<run>/incoming/*.jsonl, whose lines open with {"sha256":"<64 hex>"       Writes   nothing
Units    shares 0..1; hashes are the 32 bytes of `row_sha256`

A row is held out when an earlier file has held it out already, and else when the seed and its own hash say so, whatever
file it comes in: none of a file under 50 rows, and only up to `cap` different ones of a file (the lowest hashes).
"""

import hashlib
import heapq
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

MIN_ROWS = 50
_RANGE = 1 << 64
_PREFIX = b'{"sha256":"'
DIGEST_BYTES = 32  # of a SHA-256
LINE_START = "sha256"  # the key that opens every line of a held-out file


def read_held_out(folder: Path) -> set[bytes]:
    """The hashes of all rows held out so far in a run. Raises OSError."""
    found: set[bytes] = set()
    for file in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        found |= read_held_out_file(file)
    return found


def read_held_out_file(file: Path) -> set[bytes]:
    """The hashes in one held-out file. Raises OSError; ValueError for a damaged line."""
    with file.open("rb") as lines:
        return {bytes.fromhex(line[len(_PREFIX) : len(_PREFIX) + 64].decode()) for line in lines if line.strip()}


class HeldOutDraw:
    """Draws the held-out rows of one file while its rows pass by."""

    def __init__(self, *, seed: int, share: float, cap: int, already: Collection[bytes]) -> None:
        self._mix = np.uint64(int.from_bytes(hashlib.sha256(b"held_out:%d" % seed).digest()[:8], "big"))
        self._below = np.uint64(int(share * _RANGE))
        self._cap = cap
        self._already = already
        self._heap: list[tuple[int, bytes]] = []  # of negated keys: the largest key is popped first
        self._rows: dict[bytes, list[int]] = {}
        self._known: dict[bytes, list[int]] = {}
        self.rows = 0

    def offer(self, numbers: Sequence[int], digests: bytes) -> None:
        """Look at some rows: their numbers, and their hashes end to end."""
        self.rows += len(numbers)
        if self._already:
            for index, number in enumerate(numbers):
                digest = _digest_at(digests, index)
                if digest in self._already:
                    self._known.setdefault(digest, []).append(number)
        keys = np.frombuffer(digests, dtype=">u8")[::4] ^ self._mix
        for index in np.flatnonzero(keys < self._below).tolist():
            digest = _digest_at(digests, index)
            if digest not in self._known:
                self._draw(numbers[index], digest, int(keys[index]))

    def _draw(self, number: int, digest: bytes, key: int) -> None:
        if digest in self._rows:
            self._rows[digest].append(number)
            return
        self._rows[digest] = [number]
        heapq.heappush(self._heap, (-key, digest))
        if len(self._heap) > self._cap:
            del self._rows[heapq.heappop(self._heap)[1]]

    def chosen(self) -> dict[bytes, list[int]]:
        """The hashes held out and the rows that have them, once all rows have been offered."""
        drawn = self._rows if self.rows >= MIN_ROWS else {}
        # Known rows count for the cap: a file that is checked again finds its own held out, and draws no others beside.
        spare = max(0, self._cap - len(self._known))
        over = {digest for _, digest in heapq.nsmallest(len(self._heap) - spare, self._heap)}
        return {digest: rows for digest, rows in drawn.items() if digest not in over} | self._known


def _digest_at(digests: bytes, index: int) -> bytes:
    return digests[DIGEST_BYTES * index : DIGEST_BYTES * (index + 1)]
