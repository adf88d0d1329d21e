"""Which rows the label audit of level quick looks at (arrow: intake)."""

import heapq
from collections.abc import Sequence

import numpy as np

AUDITED_ROWS = 512


class RowSample:
    """Draws AUDITED_ROWS rows by seed and content; equal files are audited alike."""

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed)
        self._heap: list[tuple[int, int]] = []  # of negated keys

    def offer(self, numbers: Sequence[int], digests: Sequence[bytes]) -> None:
        keys = np.frombuffer(b"".join(digests), dtype=">u8")[1::4] ^ self._seed
        full = len(self._heap) == AUDITED_ROWS
        near = np.flatnonzero(keys < np.uint64(-self._heap[0][0])).tolist() if full else range(len(keys))
        for index in near:
            entry = (-int(keys[index]), numbers[index])
            if len(self._heap) < AUDITED_ROWS:
                heapq.heappush(self._heap, entry)
            elif entry > self._heap[0]:
                heapq.heapreplace(self._heap, entry)

    @property
    def numbers(self) -> set[int]:
        return {number for _, number in self._heap}
