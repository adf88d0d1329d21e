"""Retention: which checkpoints go, by the order of their manifests, never by number or date (arrow: checkpoints).

Reads    the chain, pins.json, what serves, the leaderboard's best
Writes   checkpoints/<run>/manifests/ (what stays of a removed one); removes folders; empties .undone/ and .incomplete/
Errors   none leave `tick`: a removal that fails is tried again at the next commit
Effects  the only code that deletes checkpoints; the manifest and the record of trained rows always stay
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from core.checkpoints import Checkpoint
from core.daemon.catalogue_view import CatalogueView
from core.daemon.context import Context
from core.daemon.deployment import DeploymentView
from core.errors import DropforgeError
from core.paths import Workspace
from core.status import read_status

logger = logging.getLogger(__name__)

_LESS_IS_BETTER = ("loss", "perplexity", "bits_per_token")
_LOOK_EVERY_S = 2.0
_AT_LEAST = 2
_KEEP_ASIDE = 3  # taken-back and broken ones, for a look: the newest few


def pins_file(workspace: Workspace, run: str) -> Path:
    return workspace.run_dir(run) / "pins.json"


def pinned(path: Path) -> set[str]:
    """The ids a person wants kept."""
    listed = (read_status(path) or {}).get("pinned")
    return {item for item in listed if isinstance(item, str)} if isinstance(listed, list) else set()


def to_remove(chain: list[Checkpoint], keep: int, wanted: set[str]) -> list[Checkpoint]:
    """What goes, oldest first.

    Args:
        chain: committed checkpoints, base first. keep: newest ones that stay, at least 2. wanted: ids that stay anyway.
    """
    newest = {checkpoint.id for checkpoint in chain[-max(_AT_LEAST, keep) :]}
    return [c for c in chain if c.parent is not None and c.id not in newest | wanted]


class SnapshotService:
    """Removes what nobody needs, one checkpoint a tick."""

    def __init__(
        self, context: Context, view: CatalogueView, deployment: DeploymentView, in_use: Callable[[], set[str]]
    ) -> None:
        self._context = context
        self._view = view
        self._deployment = deployment
        self._in_use = in_use
        self._done_for: tuple[object, ...] | None = None
        self._next_s = 0.0

    def start_clean(self) -> None:
        """Finish removals that a crash interrupted; thin out what was set aside. Before any trainer runs."""
        workspace = self._context.workspace
        for trash in workspace.run_dir(self._context.run).glob(".trash-*"):
            shutil.rmtree(trash, ignore_errors=True)
        for folder in (workspace.undone_dir, workspace.incomplete_dir):
            for entry in _oldest_first(folder)[:-_KEEP_ASIDE]:
                logger.debug("removing %s", entry.name)
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)

    def tick(self, now: float) -> None:
        """Look every two seconds; remove at most one checkpoint."""
        if now < self._next_s:
            return
        self._next_s = now + _LOOK_EVERY_S
        pins = pinned(pins_file(self._context.workspace, self._context.run))
        keep = self._context.settings.checkpoints.keep
        wanted = pins | self._served() | self._best() | self._in_use()
        state = (keep, frozenset(wanted), tuple(c.id for c in self._view.committed))
        if state == self._done_for or self._view.error is not None:
            return
        gone = to_remove(self._view.committed, keep, wanted)
        if not gone:
            self._done_for = state
            return
        try:
            self._view.catalogue.remove(gone[0])
        except DropforgeError as error:
            logger.warning("checkpoint %s was not removed: %s", gone[0].id, error)
            self._done_for = state
            return
        text = f"weights of {gone[0].id} removed, its manifest stays"
        self._context.events.emit("checkpoint_removed", text, checkpoint=gone[0].id)
        self._view.refresh()

    def _served(self) -> set[str]:
        return {item for item in (self._deployment.serving, self._deployment.previous) if item is not None}

    def _best(self) -> set[str]:
        """The candidate with the best value of each primary suite on the leaderboard."""
        board = read_status(self._context.workspace.status_file("leaderboard.json")) or {}
        best: dict[str, tuple[float, str]] = {}
        for row in board.get("candidates", []):
            for suite, cell in (row.get("suites") or {}).items():
                value = cell.get("value") if isinstance(cell, dict) else None
                if not isinstance(value, int | float):
                    continue
                score = -float(value) if cell.get("metric") in _LESS_IS_BETTER else float(value)
                if suite not in best or score > best[suite][0]:
                    best[suite] = (score, str(row.get("id")))
        return {checkpoint_id for _, checkpoint_id in best.values()}


def _oldest_first(folder: Path) -> list[Path]:
    """By inode change time: when the entry was moved here."""
    try:
        entries = [(entry.stat(follow_symlinks=False).st_ctime_ns, entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []
    return [Path(path) for _, path in sorted(entries)]
