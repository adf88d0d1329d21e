"""What the trainer says, read when it changes (arrow: trainer -> checkpoints, seen from the daemon).

Reads    status/training_status.json          Errors  none: a missing or damaged file keeps the last document
"""

import os
from typing import Any  # status documents are JSON

from core.paths import Workspace
from core.status import read_status


class TrainingView:
    """The trainer's status file, re-read only when it was replaced."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.status_file("training_status.json")
        self._seen: tuple[int, int] | None = None
        self.doc: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        try:
            found = os.stat(self._path)
        except OSError:
            return
        seen = (found.st_ino, found.st_mtime_ns)
        if seen != self._seen:
            self._seen = seen
            self.doc = read_status(self._path) or self.doc

    @property
    def ack(self) -> dict[str, Any]:
        """The last order the trainer has carried out: {seq, step, checkpoint}, or {}."""
        ack = self.doc.get("ack")
        return ack if isinstance(ack, dict) else {}

    @property
    def acked_seq(self) -> int:
        seq = self.ack.get("seq")
        return seq if isinstance(seq, int) else 0

    @property
    def progress(self) -> tuple[object, object]:
        """What changes while the trainer is alive and working."""
        return (self.doc.get("heartbeat"), self.doc.get("current_step"))

    @property
    def step(self) -> int | None:
        step = self.doc.get("current_step")
        return step if isinstance(step, int) else None
