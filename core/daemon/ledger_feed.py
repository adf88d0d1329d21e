"""Keeping the ledger and the totals by generator up with the files, a little each second (beside all arrows).

Reads    events.jsonl, metrics.jsonl, verdicts that moved, evaluations/*/   Writes  the ledger, status/data_lineage.json
Errors   none: a ledger that refuses is tried again later; work never waits for it
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from core.daemon.context import Context
from core.daemon.lineage_view import LineageView
from core.errors import DropforgeError, StorageError
from core.paths import LANES
from core.verdicts import verdict_of

if TYPE_CHECKING:  # loaded with the first feed, when the inbox has had its turn: SQLAlchemy takes 0.25 s
    from core.ledger import Ledger

logger = logging.getLogger(__name__)

_EVERY_S = 1.0
_AFTER_TROUBLE_S = 30.0
_JOBS_A_TURN = 200


class LedgerFeed:
    """Compares what it has indexed with the folders' inode data."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ledger: Ledger | None = None
        self._lineage = LineageView(context.workspace)
        self._next_s = 0.0
        self._lanes: dict[Path, tuple[int, frozenset[str]]] = {}
        self._due: dict[str, None] = {}
        self._evaluations: dict[Path, tuple[int, int]] = {}

    def tick(self, now: float) -> None:
        if now < self._next_s:
            return
        self._next_s = now + _EVERY_S
        try:
            self._feed(self._opened())
        except StorageError as error:
            self._next_s = now + _AFTER_TROUBLE_S
            logger.warning("the ledger lags behind: %s", error)

    def touch(self, job_id: str) -> None:
        """This job's verdict changed in place."""
        self._due[job_id] = None

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _opened(self) -> "Ledger":
        from core.ledger import ledger_url, open_ledger

        if self._ledger is None:
            self._ledger = open_ledger(ledger_url(self._context.workspace, self._context.settings))
        return self._ledger

    def _feed(self, ledger: "Ledger") -> None:
        from core.ledger import evaluation_folders, put_folder

        workspace, run = self._context.workspace, self._context.run
        ledger.feed_events(workspace.status_file("events.jsonl"))
        ledger.feed_metrics(run, workspace.metrics_file(run))
        self._find_moved()
        turn = list(self._due)[:_JOBS_A_TURN]
        verdicts = []
        for job_id in turn:
            try:
                verdicts.append(verdict_of(workspace, job_id))
            except DropforgeError:  # removed by a person
                continue
        ledger.put_jobs(verdicts)
        self._lineage.add(verdicts)
        for job_id in turn:
            del self._due[job_id]
        for checkpoint, folder in evaluation_folders(workspace, run):
            seen = (_mtime(folder / "metrics.json"), _mtime(folder / "deploy.json"))
            if self._evaluations.get(folder) != seen:
                put_folder(ledger, run, checkpoint, folder)
                self._evaluations[folder] = seen

    def _find_moved(self) -> None:
        """Job folders that stand in another lane than at the last look."""
        workspace = self._context.workspace
        for folder in (*(workspace.lane(lane) for lane in LANES), workspace.rejected_dir):
            changed = _mtime(folder)
            before = self._lanes.get(folder, (-1, frozenset[str]()))
            if changed != before[0]:
                names = frozenset(os.listdir(folder)) if folder.is_dir() else frozenset[str]()
                self._due |= dict.fromkeys(sorted(names - before[1]))
                self._lanes[folder] = (changed, names)


def _mtime(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
