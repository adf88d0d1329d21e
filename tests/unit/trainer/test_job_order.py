"""The order of rows is a shuffle of each epoch that depends on seed, file and epoch alone."""

from dataclasses import dataclass

import numpy as np

from core.checkpoints import REPLAYED_EPOCH
from trainer.data import JobRows, generator_for
from trainer.replay import ReplayPool


@dataclass
class Numbered:
    """A token cache whose every row is its own number."""

    first: int
    count: int

    @property
    def row_numbers(self) -> np.ndarray:
        return np.arange(self.count)

    @property
    def hashes(self) -> np.ndarray:
        return np.array([b"%d" % (self.first + n) for n in range(self.count)], "S16")

    def __len__(self) -> int:
        return self.count

    def ids(self, index: int) -> np.ndarray:
        return np.array([self.first + index], np.int32)

    def mask(self, index: int) -> np.ndarray:
        return np.ones(1, np.bool_)


def _rows(job_id: str = "job", seed: int = 0, sha256: str = "a", ratio: float = 0.0) -> JobRows:
    pool = ReplayPool([("old", Numbered(100, 5)), ("older", Numbered(200, 7))])
    return JobRows(job_id, Numbered(0, 10), sha256=sha256, seed=seed, pool=pool, replay_ratio=ratio)


def _ids(rows: JobRows, first: int, count: int) -> list[int]:
    return [int(row.ids[0]) for row in rows.take(first, count)[0]]


def test_each_epoch_holds_every_row_once_in_an_order_of_its_own() -> None:
    rows = _rows()
    epochs = [_ids(rows, 10 * epoch, 10) for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_seed_and_file_and_not_on_the_job_id_or_on_where_one_begins() -> None:
    whole = _ids(_rows(), 0, 20)
    assert _ids(_rows(job_id="other"), 0, 20) == whole
    assert _ids(_rows(), 7, 13) == whole[7:]
    assert _ids(_rows(seed=1), 0, 20) != whole
    assert _ids(_rows(sha256="b"), 0, 20) != whole


def test_replayed_rows_come_from_all_earlier_jobs_and_are_recorded_under_them() -> None:
    rows = _rows(ratio=1.0)
    assert rows.rows_in_epoch == 20
    _, records = rows.take(0, 20)
    own = records[records["epoch"] != REPLAYED_EPOCH]
    replayed = records[records["epoch"] == REPLAYED_EPOCH]
    assert sorted(own["row"].tolist()) == list(range(10))
    assert set(replayed["job"].tolist()) == {b"old", b"older"}
    assert len({(r["job"], r["row"]) for r in replayed}) == 10


def test_a_ratio_that_asks_for_more_than_there_is_takes_all_there_is() -> None:
    assert _rows(ratio=5.0).rows_in_epoch == 22


def test_random_numbers_differ_by_epoch() -> None:
    assert generator_for(0, "a", 0).random() != generator_for(0, "a", 1).random()
