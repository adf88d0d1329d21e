"""The ledger: an index of jobs, metrics, evaluations, deployments and events, for charts (beside all arrows).

Reads    verdicts, checkpoints/*/metrics.jsonl, evaluations/*/{metrics,deploy}.json, status/events.jsonl
Writes   status/ledger.db (SQLite WAL) or the database that `ledger.url` names; by the daemon alone
Format   five tables and one of cursors; `doc` columns hold the JSON the row was made from
Errors   StorageError when the database cannot be opened or written
Effects  never the truth: it may be deleted at any time and is rebuilt from the folders
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any  # rows are made of JSON documents

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from core.atomic import parse_json
from core.errors import JsonError, MissingToolError, StorageError
from core.paths import Workspace
from core.settings import Settings
from core.status import read_status
from core.verdicts import all_verdicts

META = sa.MetaData()
JOBS = sa.Table(
    "jobs",
    META,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("state", sa.String(16), index=True),
    sa.Column("code", sa.String(64)),
    sa.Column("file", sa.Text),
    sa.Column("sha256", sa.String(64), index=True),
    sa.Column("spec", sa.String(64)),
    sa.Column("rows_train", sa.Integer),
    sa.Column("received_at", sa.String(32)),
    sa.Column("finished_at", sa.String(32)),
    sa.Column("checkpoint", sa.String(40)),
    sa.Column("served", sa.Boolean),
    sa.Column("doc", sa.Text),
)
METRICS = sa.Table(
    "metrics",
    META,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("time", sa.String(32)),
    sa.Column("job_id", sa.String(40)),
    sa.Column("loss", sa.Float),
    sa.Column("doc", sa.Text),
)
EVALUATIONS = sa.Table(
    "evaluations",
    META,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("checkpoint", sa.String(40), primary_key=True),
    sa.Column("decision", sa.String(16)),
    sa.Column("p_value", sa.Float),
    sa.Column("doc", sa.Text),
)
DEPLOYMENTS = sa.Table(
    "deployments",
    META,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("checkpoint", sa.String(40), primary_key=True),
    sa.Column("ok", sa.Boolean),
    sa.Column("doc", sa.Text),
)
EVENTS = sa.Table(
    "events",
    META,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("time", sa.String(32), index=True),
    sa.Column("kind", sa.String(32), index=True),
    sa.Column("message", sa.Text),
    sa.Column("doc", sa.Text),
)
CURSORS = sa.Table("cursors", META, sa.Column("name", sa.Text, primary_key=True), sa.Column("position", sa.BigInteger))
_CHUNK_BYTES = 4_000_000
_ROWS_A_STATEMENT = 500


def ledger_url(workspace: Workspace, settings: Settings) -> str:
    """The SQLAlchemy URL: `ledger.url`, else SQLite in status/."""
    return settings.ledger.url or f"sqlite:///{workspace.status_file('ledger.db')}"


def make_engine(url: str) -> sa.Engine:
    """An engine for `ledger.url`.

    Raises:
        MissingToolError: the driver that the URL names is not installed.
        StorageError: it is no URL of a database.
    """
    try:
        return sa.create_engine(url, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise MissingToolError(
            f"the driver {error.name!r} of ledger.url is not installed",
            where="ledger.url",
            fix="pip install 'dropforge[postgres]' and write postgresql+psycopg://...",
        ) from error
    except SQLAlchemyError as error:
        raise _wrapped(error) from error


def open_ledger(url: str) -> "Ledger":
    """Open, creating the tables. Raises StorageError or MissingToolError."""
    engine = make_engine(url)
    try:
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _prepare_sqlite)
        META.create_all(engine)
    except SQLAlchemyError as error:
        raise _wrapped(error) from error
    return Ledger(engine)


def _prepare_sqlite(connection: Any, _record: object) -> None:  # the driver's connection has no common type
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=2000")
    cursor.close()


def _wrapped(error: SQLAlchemyError) -> StorageError:
    said = " ".join(str(error).split())[:300]
    return StorageError(f"the ledger refuses: {said}", where="ledger", fix="dropforge verify --rebuild makes it anew")


class Ledger:
    """Reads and writes. Writing a row again replaces it, so feeding twice does no harm."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def close(self) -> None:
        self.engine.dispose()

    def put_jobs(self, verdicts: Iterable[Mapping[str, Any]]) -> None:
        """Index verdicts. Raises StorageError."""
        self._put(JOBS, ["job_id"], [_job_row(verdict) for verdict in verdicts])

    def put_evaluation(self, run: str, checkpoint: str, doc: Mapping[str, Any]) -> None:
        row = {"run": run, "checkpoint": checkpoint, "decision": doc.get("decision"), "p_value": doc.get("p_value")}
        self._put(EVALUATIONS, ["run", "checkpoint"], [row | {"doc": _text(doc)}])

    def put_deployment(self, run: str, checkpoint: str, doc: Mapping[str, Any]) -> None:
        row = {"run": run, "checkpoint": checkpoint, "ok": doc.get("ok") is True, "doc": _text(doc)}
        self._put(DEPLOYMENTS, ["run", "checkpoint"], [row])

    def feed_metrics(self, run: str, path: Path) -> int:
        """Index the lines of metrics.jsonl that are new since the last call. Returns how many.

        A line whose step is not beyond the one before it says that training was taken back (rewind, skip, a crash): the
        steps from there on are void and go.
        """
        fed = 0
        while True:
            start = self._position(f"metrics/{run}", path)
            documents, end = _new_lines(path, start)
            if end == start:
                return fed
            rows = [row for row in (_metric_row(run, doc) for doc in documents) if row is not None]
            void = [METRICS.c.run == run, METRICS.c.step >= min(row["step"] for row in rows)] if rows else None
            self._put(METRICS, ["run", "step"], _without_void(rows), cursor=(f"metrics/{run}", end), void=void)
            fed += len(rows)

    def feed_events(self, path: Path) -> int:
        """Index the new lines of events.jsonl. Returns how many."""
        fed = 0
        while True:
            start = self._position("events", path)
            documents, end = _new_lines(path, start)
            if end == start:
                return fed
            rows = [row for row in map(_event_row, documents) if row is not None]
            self._put(EVENTS, ["seq"], rows, cursor=("events", end))
            fed += len(rows)

    def metrics(self, run: str, *, since: int = -1, limit: int = 100_000) -> list[dict[str, Any]]:
        """The step metrics of a run after step `since`, in step order."""
        query = sa.select(METRICS.c.doc).where(METRICS.c.run == run, METRICS.c.step > since)
        return self._docs(query.order_by(METRICS.c.step).limit(limit))

    def jobs(self, *, state: str | None = None, limit: int = 1000) -> list[dict[str, Any]]:
        """Verdicts as last indexed, newest first."""
        query = sa.select(JOBS.c.doc).order_by(JOBS.c.job_id.desc()).limit(limit)
        return self._docs(query if state is None else query.where(JOBS.c.state == state))

    def events(self, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Events with a larger seq, oldest first."""
        return self._docs(sa.select(EVENTS.c.doc).where(EVENTS.c.seq > after).order_by(EVENTS.c.seq).limit(limit))

    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        tables = (JOBS, METRICS, EVALUATIONS, DEPLOYMENTS, EVENTS)
        try:
            with self.engine.connect() as connection:
                return {t.name: int(connection.scalar(sa.select(sa.func.count()).select_from(t)) or 0) for t in tables}
        except SQLAlchemyError as error:
            raise _wrapped(error) from error

    def _docs(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        try:
            with self.engine.connect() as connection:
                return [json.loads(doc) for doc in connection.scalars(query)]
        except SQLAlchemyError as error:
            raise _wrapped(error) from error

    def _position(self, name: str, path: Path) -> int:
        """Where reading goes on; from the start when the file is shorter than that (rotated, or taken back)."""
        try:
            with self.engine.connect() as connection:
                known = connection.scalar(sa.select(CURSORS.c.position).where(CURSORS.c.name == name)) or 0
        except SQLAlchemyError as error:
            raise _wrapped(error) from error
        try:
            return int(known) if path.stat().st_size >= known else 0
        except FileNotFoundError:
            return int(known)

    def _put(
        self,
        table: sa.Table,
        keys: list[str],
        rows: list[dict[str, Any]],
        *,
        cursor: tuple[str, int] | None = None,
        void: list[sa.ColumnElement[bool]] | None = None,
    ) -> None:
        """Write rows, where the next read starts, and what no longer holds, in one transaction."""
        latest = list({tuple(row[key] for key in keys): row for row in rows}.values())
        try:
            with self.engine.begin() as connection:
                if void:
                    connection.execute(sa.delete(table).where(*void))
                for at in range(0, len(latest), _ROWS_A_STATEMENT):
                    connection.execute(_upsert(self.engine, table, keys, latest[at : at + _ROWS_A_STATEMENT]))
                if cursor is not None:
                    row = {"name": cursor[0], "position": cursor[1]}
                    connection.execute(_upsert(self.engine, CURSORS, ["name"], [row]))
        except SQLAlchemyError as error:
            raise _wrapped(error) from error


def _upsert(engine: sa.Engine, table: sa.Table, keys: list[str], rows: list[dict[str, Any]]) -> sa.Executable:
    make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    statement = make(table).values(rows)
    fresh = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys}
    return statement.on_conflict_do_update(index_elements=keys, set_=fresh)


def _new_lines(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """The complete lines after byte `start` (at most 4 MB of them) and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(_CHUNK_BYTES)
    except FileNotFoundError:
        return [], start
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == _CHUNK_BYTES:
        return [], start + len(data)  # a line of 4 MB is not ours
    documents = []
    for line in data[:end].split(b"\n"):
        try:
            doc = parse_json(line, path.name) if line.strip() else None
        except JsonError:
            continue  # torn by a crash
        if isinstance(doc, dict):
            documents.append(doc)
    return documents, start + end


def _without_void(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop the rows that a later row of the same or an earlier step takes back."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def _job_row(verdict: Mapping[str, Any]) -> dict[str, Any]:
    row = {column.name: verdict.get(column.name) for column in JOBS.columns}
    return row | {"served": verdict.get("served") is True, "doc": _text(verdict)}


def _metric_row(run: str, doc: Mapping[str, Any]) -> dict[str, Any] | None:
    step = doc.get("step")
    if not isinstance(step, int):
        return None
    loss = doc.get("loss")
    known = {"run": run, "step": step, "time": doc.get("time"), "job_id": doc.get("job_id")}
    return known | {"loss": loss if isinstance(loss, int | float) else None, "doc": _text(doc)}


def _event_row(doc: Mapping[str, Any]) -> dict[str, Any] | None:
    if not isinstance(doc.get("seq"), int):
        return None
    return {key: doc.get(key) for key in ("seq", "time", "kind", "message")} | {"doc": _text(doc)}


def _text(doc: Mapping[str, Any]) -> str:
    return json.dumps(doc, ensure_ascii=True)


def rebuild(workspace: Workspace, url: str) -> dict[str, int]:
    """Make the ledger anew from the folders. Returns the rows of each table. Raises StorageError."""
    ledger = open_ledger(url)
    try:
        META.drop_all(ledger.engine)
        META.create_all(ledger.engine)
        ledger.put_jobs(all_verdicts(workspace))
        for run in _runs(workspace):
            ledger.feed_metrics(run, workspace.metrics_file(run))
            for checkpoint, folder in evaluation_folders(workspace, run):
                put_folder(ledger, run, checkpoint, folder)
        ledger.feed_events(workspace.status_file("events.jsonl"))
        return ledger.counts()
    except SQLAlchemyError as error:
        raise _wrapped(error) from error
    finally:
        ledger.close()


def put_folder(ledger: Ledger, run: str, checkpoint: str, folder: Path) -> None:
    """Index what judge and publisher wrote about one checkpoint."""
    metrics, deploy = read_status(folder / "metrics.json"), read_status(folder / "deploy.json")
    if metrics is not None:
        ledger.put_evaluation(run, checkpoint, metrics)
    if deploy is not None:
        ledger.put_deployment(run, checkpoint, deploy)


def evaluation_folders(workspace: Workspace, run: str) -> Iterator[tuple[str, Path]]:
    """(checkpoint id, folder) of everything judged or published in a run."""
    parent = workspace.evaluation_dir(run, "x").parent
    try:
        names = sorted(os.listdir(parent))
    except FileNotFoundError:
        return
    for name in names:
        yield name, parent / name


def _runs(workspace: Workspace) -> list[str]:
    try:
        entries = list(os.scandir(workspace.checkpoints_dir))
    except FileNotFoundError:
        return []
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
