"""The run's commits as the daemon last saw them, re-read only when the run's folder changed (arrow: checkpoints).

Reads    checkpoints/<run>/          Errors   none: a chain that cannot be read keeps the last one, and `error` says why
"""

import os

from core.checkpoints import Catalogue, Checkpoint
from core.errors import DropforgeError
from core.paths import Workspace


class CatalogueView:
    """Committed checkpoints in chain order, base first."""

    def __init__(self, workspace: Workspace, run: str) -> None:
        self.catalogue = Catalogue(workspace, run)
        self._folders = (workspace.run_dir(run), workspace.manifests_dir(run))
        self._seen: tuple[int | None, ...] | None = None
        self.committed: list[Checkpoint] = []
        self.error: str | None = None

    def refresh(self) -> bool:
        """Look again; returns True when the list may have changed."""
        seen = tuple(_changed_ns(str(folder)) for folder in self._folders)
        if seen == self._seen:
            return False
        try:
            self.committed = self.catalogue.committed()
            self.error = None
        except DropforgeError as error:
            self.error = str(error)
        self._seen = seen
        return True

    @property
    def base(self) -> Checkpoint | None:
        return self.committed[0] if self.committed and self.committed[0].parent is None else None

    @property
    def head(self) -> Checkpoint | None:
        return self.committed[-1] if self.committed else None

    @property
    def job_ends(self) -> list[Checkpoint]:
        """The commits that end a job: the only ones judged."""
        return [checkpoint for checkpoint in self.committed if checkpoint.ends_job]

    def find(self, checkpoint_id: str | None) -> Checkpoint | None:
        return next((c for c in self.committed if c.id == checkpoint_id), None)


def _changed_ns(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None
