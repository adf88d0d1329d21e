"""Commits written beside the training: a snapshot in memory, then a thread that puts it on the disk (trainer ->
checkpoints).

Writes   one commit at a time through core.checkpoints.Catalogue
Errors   StorageError, raised from `settle`: the thread's failure ends the process, the newest commit stays the truth
Effects  one thread while a commit is under way; it touches no torch operation, only bytes (a second thread that
         computes would fight the first one for the cores)
"""

import logging
import threading
import time
from collections.abc import Callable

from core.checkpoints import Checkpoint

logger = logging.getLogger(__name__)


class BackgroundCommit:
    """One commit under way. Begins at once."""

    def __init__(self, write: Callable[[], Checkpoint]) -> None:
        """Args: write: puts the commit on the disk and returns it; runs in a thread of its own."""
        self._write = write
        self._result: Checkpoint | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="commit")
        self._thread.start()

    def _work(self) -> None:
        began = time.monotonic()
        try:
            self._result = self._write()
            logger.info("checkpoint %s committed in %.2f s", self._result.id, time.monotonic() - began)
        except BaseException as error:  # noqa: BLE001  # handed to the thread that waits for the commit
            self._error = error

    @property
    def settled(self) -> bool:
        """True when `result` would not wait."""
        return not self._thread.is_alive()

    def result(self) -> Checkpoint:
        """Wait for the commit. Raises what its thread raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError("the commit's thread ended without a result")
        return self._result
