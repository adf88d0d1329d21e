"""The gates run here, off the daemon's loop, in a process of their own (arrow: intake).

Errors   a task on which the process dies comes back as WorkerDiedError; other exceptions come back as they are
Effects  one spawned child that dies with the daemon; it is replaced when it dies
"""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any  # what the gates are called with and return is theirs

from core.daemon.pid_manager import die_with_parent

logger = logging.getLogger(__name__)


class WorkerDiedError(Exception):
    """The worker process ended (killed, out of memory, crashed) while this task ran or waited."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished task: its key and either a result or an error."""

    key: str
    result: Any
    error: Exception | None


def _prepare(parent_pid: int) -> None:
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class BackgroundWorker:
    """A queue of tasks in front of one process. Tasks finish in the order in which they were submitted."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._pool: ProcessPoolExecutor | None = None
        self._running: dict[str, Future[Any]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, key: str) -> bool:
        return key in self._running

    @property
    def pid(self) -> int | None:
        """The worker's pid, for status and tests; None before the first task."""
        processes = getattr(self._pool, "_processes", None)  # the pool has no public name for it
        return next(iter(processes), None) if processes else None

    def submit(self, key: str, task: Callable[..., Any], *arguments: object) -> None:
        """Queue a picklable call. Forks on first use: call from the main thread."""
        try:
            future = self._executor().submit(task, *arguments)
        except BrokenProcessPool:  # it died while idle: nobody's fault
            self._discard()
            future = self._executor().submit(task, *arguments)
        future.add_done_callback(lambda _: self._wake())
        self._running[key] = future

    def collect(self) -> list[Finished]:
        """What has finished since the last call, oldest first."""
        finished = []
        for key, future in list(self._running.items()):
            if not future.done():
                break
            del self._running[key]
            finished.append(_outcome(key, future))
        if any(isinstance(item.error, WorkerDiedError) for item in finished):
            self._discard()
        return finished

    def kill(self) -> None:
        """SIGKILL to a process that does not come back: its task ends as WorkerDiedError."""
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.kill()

    def stop(self) -> None:
        """End the process now; tasks on the way are forgotten (their claims are found again at the next start)."""
        self.kill()
        pool, self._pool = self._pool, None
        self._running.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(os.getpid(),)
            )
        return self._pool

    def _discard(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _outcome(key: str, future: "Future[Any]") -> Finished:
    error = future.exception() if not future.cancelled() else None
    if future.cancelled() or isinstance(error, BrokenProcessPool):
        logger.warning("the worker died while %s was checked or waited for it", key)
        return Finished(key, None, WorkerDiedError(str(error or "cancelled")))
    if error is None:
        return Finished(key, future.result(), None)
    return Finished(key, None, error if isinstance(error, Exception) else WorkerDiedError(repr(error)))
