"""status/daemon.json: what the daemon does now, at least every second (beside all arrows).

Writes   status/daemon.json by rename, without fsync          Errors  none: a disk that refuses is tried again
"""

import logging
import os
from typing import Any  # status documents are JSON

from core.daemon.context import Context
from core.daemon.pid_manager import boot_id
from core.errors import StorageError
from core.paths import LANES
from core.status import iso_now, write_status

logger = logging.getLogger(__name__)

EVERY_S = 1.0


class Heartbeat:
    """Writes the state when it changed, and every second."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._path = context.workspace.status_file("daemon.json")
        self._since = iso_now()
        self._boot_id = boot_id()
        self._next_s = 0.0
        self._last: dict[str, Any] = {}

    def tick(self, now: float, facts: dict[str, Any]) -> None:
        """Write when due.

        Args:
            facts: state, reason, current_job, step, ignored, children, and more keys that only people read.
        """
        if now < self._next_s and facts["state"] == self._last.get("state"):
            return
        self._next_s = now + EVERY_S
        self.write(facts)

    def write(self, facts: dict[str, Any]) -> None:
        self._last = facts
        queue = {lane: self._context.queue.count(lane) for lane in LANES}
        doc = {
            "pid": os.getpid(),
            "boot_id": self._boot_id,
            "since": self._since,
            "heartbeat": iso_now(),
            "queue": queue,
            "run": self._context.run,
            "config_error": self._context.config.error,
            **facts,
        }
        try:
            write_status(self._path, doc)
        except StorageError as error:
            logger.warning("status/daemon.json was not written: %s", error)
