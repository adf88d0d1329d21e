"""Which rows the label audit of level quick looks at (arrow: intake)."""

import heapq
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

AUDITED_ROWS = 512
_KEPT_BYTES = 1 << 16  # a longer row is read again


class RowSample:
    """Draws AUDITED_ROWS rows by seed and content; equal files are audited alike."""

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed)
        self._heap: list[tuple[int, int, int, bytes]] = []  # negated key, row number, line, canonical JSON

    def offer(
        self,
        numbers: Sequence[int],
        digests: bytes,
        lines: Sequence[int] = (),
        texts: Sequence[bytes] = (),
    ) -> None:
        """Look at some rows: their numbers, their hashes end to end; line and canonical JSON if they are to be kept."""
        keys = np.frombuffer(digests, dtype=">u8")[1::4] ^ self._seed
        full = len(self._heap) == AUDITED_ROWS
        near = np.flatnonzero(keys < np.uint64(-self._heap[0][0])).tolist() if full else range(len(keys))
        for index in near:
            kept = (lines[index], texts[index]) if texts and len(texts[index]) <= _KEPT_BYTES else (0, b"")
            entry = (-int(keys[index]), numbers[index], *kept)
            if len(self._heap) < AUDITED_ROWS:
                heapq.heappush(self._heap, entry)
            elif entry[0] > self._heap[0][0]:  # of equal rows the first, however many are offered at once
                heapq.heapreplace(self._heap, entry)

    @property
    def numbers(self) -> set[int]:
        return {number for _, number, _, _ in self._heap}

    def kept(self) -> dict[int, tuple[int, bytes]]:
        """Row number -> line and canonical JSON, in the order of the file, of the rows drawn that are kept."""
        return {number: (line, text) for _, number, line, text in sorted(self._heap, key=itemgetter(1)) if text}
