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

from core.checkpoints import REPLAYED_EPOCH
from core.errors import DataError
from trainer.packing import Row
from trainer.state import RECORD_DTYPE, Records

Indices = npt.NDArray[np.int64]


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


class ReplayPool(Protocol):
    """Rows of earlier jobs (trainer.replay has the real one)."""

    def __len__(self) -> int: ...
    def draw(self, wanted: int, generator: np.random.Generator) -> Indices: ...
    def locate(self, index: int) -> tuple[str, TokenRows, int]: ...


class JobRows:
    """The training rows of one job, mixed with replayed ones, and their order over all epochs.

    Pass k is the (k mod m)-th row of epoch k div m, m = rows of an epoch. The order in an epoch, and which earlier
    rows are replayed in it, depend on seed, file hash and epoch alone.
    """

    def __init__(
        self, job_id: str, cache: TokenRows, *, sha256: str, seed: int, pool: ReplayPool, replay_ratio: float = 0.0
    ) -> None:
        """Args: replay_ratio: replayed rows per row of the job."""
        self._job_id = job_id
        self._cache = cache
        self._sha256 = sha256
        self._seed = seed
        self._pool = pool
        self._replayed = min(round(replay_ratio * len(cache)), len(pool))
        self._order: tuple[int, Indices] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def rows_in_epoch(self) -> int:
        return len(self._cache) + self._replayed

    def take(self, first_pass: int, count: int) -> tuple[list[Row], Records]:
        """Rows of the passes [first_pass, first_pass + count) and the record of them."""
        rows, records = [], np.zeros(count, RECORD_DTYPE)
        for place in range(count):
            epoch, position = divmod(first_pass + place, self.rows_in_epoch)
            index = int(self.order(epoch)[position])
            job_id, cache, epoch_shown = self._job_id, self._cache, epoch
            if index >= len(self):
                job_id, cache, index = self._pool.locate(index - len(self))
                epoch_shown = REPLAYED_EPOCH
            rows.append(Row(cache.ids(index), cache.mask(index)))
            records[place] = (job_id.encode(), cache.row_numbers[index], epoch_shown, cache.hashes[index])
        return rows, records

    def order(self, epoch: int) -> Indices:
        """The rows of an epoch in their order: below len(self) the job's own, from there on the pool's."""
        if self._order[0] != epoch:
            generator = generator_for(self._seed, self._sha256, epoch)
            own = np.arange(len(self))
            drawn = self._pool.draw(self._replayed, generator) + len(self) if self._replayed else own[:0]
            self._order = (epoch, generator.permutation(np.concatenate([own, drawn])))
        return self._order[1]


def generator_for(seed: int, sha256: str, epoch: int) -> np.random.Generator:
    """Random numbers that depend on the arguments alone (Philox, keyed by their SHA-256)."""
    key = hashlib.sha256(f"{seed}:{sha256}:{epoch}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64)))
