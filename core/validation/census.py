"""What the first pass remembers of a file's good rows: hashes, and which are drawn for what (arrow: intake)."""

from array import array
from collections.abc import Collection, Sequence
from hashlib import sha256

import numpy as np

from core.validation.held_out import DIGEST_BYTES, HeldOutDraw
from core.validation.plan import Plan
from core.validation.sample import RowSample

_TEMPLATE_TOKENS = 64  # beyond these, a row has no more tokens than its canonical JSON has bytes
_ROWS_AT_ONCE = 4096


class Census:
    """Rows by their canonical JSON, in the order of the file.

    Attributes:
        draw: which rows are held out.
        sample: which rows level quick audits, with their text.
        large: numbers of the rows that may be over max_length.
    """

    def __init__(self, plan: Plan) -> None:
        self.draw = HeldOutDraw(
            seed=plan.seed, share=plan.held_out, cap=plan.held_out_cap, already=plan.already_held_out
        )
        self.sample = RowSample(plan.seed)
        self.large = array("Q")
        self._keys = array("Q")
        self._may_be_long = plan.max_length - _TEMPLATE_TOKENS
        self._keeps_texts = plan.level == "quick"

    def add(self, numbers: Sequence[int], lines: Sequence[int], texts: Sequence[bytes]) -> bytes:
        """Hash some rows and offer them to both draws. Returns the SHA-256 of all, end to end."""
        if not texts:
            return b""
        digests = b"".join([sha256(text).digest() for text in texts])
        self._offer(numbers, lines, digests, texts if self._keeps_texts else ())
        if max(map(len, texts)) > self._may_be_long:
            self.large.extend(n for n, text in zip(numbers, texts, strict=True) if len(text) > self._may_be_long)
        return digests

    def add_hashed(
        self, first: int, line: int, digests: bytes, large: Collection[int], texts: dict[int, bytes]
    ) -> None:
        """Take over what another census found in rows that follow one another.

        Args:
            first: number of the first row; `large` and `texts` count from it.
            line: of the first row.
            digests: SHA-256 of all rows, end to end.
            texts: of the rows that its sample kept.
        """
        every = len(digests) // DIGEST_BYTES
        for start in range(0, every, _ROWS_AT_ONCE):
            part = range(start, min(start + _ROWS_AT_ONCE, every))
            numbers, lines = (range(by + part.start, by + part.stop) for by in (first, line))
            own = digests[DIGEST_BYTES * part.start : DIGEST_BYTES * part.stop]
            self._offer(numbers, lines, own, [texts.get(at, b"") for at in part])
        self.large.extend(first + number for number in large)

    def _offer(self, numbers: Sequence[int], lines: Sequence[int], digests: bytes, texts: Sequence[bytes]) -> None:
        self.draw.offer(numbers, digests)
        self.sample.offer(numbers, digests, lines, texts)
        self._keys.frombytes(np.frombuffer(digests, dtype=np.uint64)[::4].tobytes())

    def duplicates(self) -> tuple[int, int]:
        """How many rows stand in the file for the second time or more, and of how many."""
        total = len(self._keys)
        return total - len(np.unique(np.frombuffer(self._keys, dtype=np.uint64))) if total else 0, total

    def repeated(self, most: int, left_out: Collection[int]) -> list[int]:
        """Numbers of the first rows that stand in the file for the second time or more.

        Args:
            left_out: numbers of the rows of the file that were not taken.
        """
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        again = np.ones(len(keys), dtype=np.bool_)
        again[np.unique(keys, return_index=True)[1]] = False
        rows: list[int] = np.flatnonzero(again)[:most].tolist()
        for number in sorted(left_out):
            rows = [row + (row >= number) for row in rows]
        return rows
