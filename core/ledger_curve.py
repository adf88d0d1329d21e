"""The loss curve out of the ledger, thinned to what a chart can show (arrow: trainer -> ledger -> monitor).

Reads    the `metrics` table, read-only: a missing SQLite file is an empty curve and is never created
Units    steps are optimizer steps of the run
Errors   StorageError when the database refuses
"""

import json
import math
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # what a trainer logs of a step is JSON

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from core.errors import StorageError
from core.ledger import METRICS, make_engine

_BUSY_S = 2.0
_FACTS = ("learning_rate", "tokens_per_sec", "epoch", "job_id", "time")
_STEPS_A_QUERY = 500


@dataclass(frozen=True, slots=True)
class Curve:
    """`points`, oldest first: {step, loss, loss_min, loss_max, learning_rate, tokens_per_sec, epoch, job_id, time}.

    A point stands for all steps after the one before it: `loss` is their mean, the others are those of its last step.
    """

    points: list[dict[str, Any]]
    last_step: int | None


class CurveReader:
    """Asks one database; safe to share by threads."""

    def __init__(self, url: str) -> None:
        self._file = _sqlite_file(url)
        self._engine = _read_only_engine(self._file) if self._file else make_engine(url)

    def close(self) -> None:
        """Let the connections go."""
        self._engine.dispose()

    def read(self, run: str, *, since: int | None, max_points: int) -> Curve:
        """The curve of a run after step `since` in at most `max_points` points. Raises StorageError."""
        if self._file is not None and not self._file.is_file():
            return Curve([], None)
        try:
            with self._engine.connect() as connection:
                return _curve(connection, run, -1 if since is None else since, max_points)
        except SQLAlchemyError as error:
            if "no such table" in str(error):  # the daemon is just making it
                return Curve([], None)
            said = " ".join(str(error).split())[:200]
            raise StorageError(
                f"the ledger cannot be read: {said}", where="ledger", fix="dropforge verify --rebuild makes it anew"
            ) from error


def _sqlite_file(url: str) -> Path | None:
    parsed = sa.make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def _read_only_engine(file: Path) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)

    # a connection a question: a file that was made anew is noticed
    return sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)


def _curve(connection: sa.Connection, run: str, since: int, max_points: int) -> Curve:
    step, loss = METRICS.c.step, METRICS.c.loss
    wanted = (METRICS.c.run == run, step > since)
    last = connection.scalar(sa.select(sa.func.max(step)).where(METRICS.c.run == run))
    first = connection.scalar(sa.select(sa.func.min(step)).where(*wanted))
    if first is None or last is None:
        return Curve([], last)
    width = -(-(last - first + 1) // max_points)
    # (step - first) % width is 0 at the first step of each bucket, in integers on every database
    bucket = step - (step - first) % width
    query = (
        sa.select(sa.func.max(step), sa.func.avg(loss), sa.func.min(loss), sa.func.max(loss))
        .where(*wanted)
        .group_by(bucket)
        .order_by(bucket)
    )
    rows = connection.execute(query).all()
    facts = _facts(connection, run, [row[0] for row in rows])
    names = ("step", "loss", "loss_min", "loss_max")
    points = [dict(zip(names, map(_finite, row), strict=True)) | facts.get(row[0], {}) for row in rows]
    return Curve(points, last)


def _facts(connection: sa.Connection, run: str, steps: list[int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for at in range(0, len(steps), _STEPS_A_QUERY):
        part = steps[at : at + _STEPS_A_QUERY]
        query = sa.select(METRICS.c.step, METRICS.c.doc).where(METRICS.c.run == run, METRICS.c.step.in_(part))
        for step, text in connection.execute(query):
            doc = json.loads(text)
            found[step] = {name: _finite(doc.get(name)) for name in _FACTS}
    return found


def _finite(value: object) -> object:
    """JSON has no NaN: a loss that is none becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
