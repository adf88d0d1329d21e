"""The rows of an active job, in the order they are trained (arrow: queue -> trainer).

Reads    queue/active/<job_id>/: the data file (hashed again), tokens/ (the token cache), the sidecar
Writes   tokens/, when the gate left none or another tokenizer's
Errors   ChangedAfterClaimError when the bytes are not those that were checked
Units    rows count from 0
"""

import hashlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from core.errors import DataError
from trainer.packing import Row
from trainer.state import RECORD_DTYPE, Records


class ChangedAfterClaimError(DataError):
    """The data file is not the one that passed the gates."""

    code = 1050
    slug = "changed_after_claim"


class TokenRows(Protocol):
    """What is read of a token cache (core.validation.TokenCache is one)."""

    @property
    def row_numbers(self) -> npt.NDArray[np.integer]: ...
    @property
    def hashes(self) -> npt.NDArray[np.bytes_]: ...
    def __len__(self) -> int: ...
    def ids(self, index: int) -> npt.NDArray[np.int32]: ...
    def mask(self, index: int) -> npt.NDArray[np.bool_]: ...


class JobRows:
    """The training rows of one job and their order over all epochs.

    Row pass k is the (k mod n)-th row of epoch k div n; the order in an epoch depends on seed, file hash and epoch
    alone.
    """

    def __init__(self, job_id: str, cache: TokenRows, *, sha256: str, seed: int) -> None:
        self._job_id = job_id
        self._cache = cache
        self._sha256 = sha256
        self._seed = seed
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self._cache)

    def take(self, first_pass: int, count: int) -> tuple[list[Row], Records]:
        """Rows of the passes [first_pass, first_pass + count) and the record of them."""
        passes = [divmod(k, len(self)) for k in range(first_pass, first_pass + count)]
        indices = [int(self.order(epoch)[position]) for epoch, position in passes]
        records = np.zeros(count, RECORD_DTYPE)
        records["job"] = self._job_id.encode()
        records["row"] = self._cache.row_numbers[indices]
        records["epoch"] = [epoch for epoch, _ in passes]
        records["hash"] = self._cache.hashes[indices]
        return [Row(self._cache.ids(i), self._cache.mask(i)) for i in indices], records

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The permutation of an epoch."""
        if self._order[0] != epoch:
            self._order = (epoch, permutation(len(self), self._seed, self._sha256, epoch))
        return self._order[1]


def permutation(rows: int, seed: int, sha256: str, epoch: int) -> npt.NDArray[np.int64]:
    """A shuffle of range(rows) that depends on its arguments alone (Philox, keyed by their SHA-256)."""
    key = hashlib.sha256(f"{seed}:{sha256}:{epoch}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64)))
    return generator.permutation(rows)
