"""The process in which the gates run, seen from the daemon (arrow: intake).

Starts   `python -m core.daemon.gate_worker`; requests and answers are JSON lines through its pipes
Errors   a request on which the process dies comes back as WorkerDiedError, one that it dies before as
         WorkerNotStartedError; errors of the gates come back as they were
Effects  one child, killed by the kernel when the daemon ends, replaced when it dies; one reading thread a child
"""

import errno
import json
import logging
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # a verdict is JSON

from core.daemon.supervisor import guarded, guarded_environment
from core.errors import DataError, DropforgeError, ResourceError
from core.settings import Settings

logger = logging.getLogger(__name__)

MODULE = "core.daemon.gate_worker"
READY_LINE = b"ready\n"  # the first line of a process that has loaded everything


class WorkerDiedError(Exception):
    """The worker process ended (killed, out of memory, crashed) while this request was in work or waited."""


class WorkerNotStartedError(ResourceError):
    """The worker process ended before it could take a request: a package is missing or broken, or memory is short."""

    code = 3024
    slug = "gates_do_not_start"
    retryable = True

    def __init__(self) -> None:
        fix = "its own words stand in the daemon's output; python -m core.daemon.gate_worker shows them again"
        super().__init__("the process that checks files does not start", fix=fix)


class GateBugError(Exception):
    """A gate raised something nobody foresaw; the message names it, the worker's log has the traceback."""


@dataclass(frozen=True, slots=True)
class GateRequest:
    """What a gate is asked: the claim folder, and what holds for it."""

    folder: Path
    root: Path
    job_id: str
    lane: str
    settings: Settings

    def line(self) -> bytes:
        """One line of JSON. ASCII: names that are no UTF-8 travel as escaped surrogates."""
        doc = {"folder": str(self.folder), "root": str(self.root), "job_id": self.job_id, "lane": self.lane}
        return json.dumps(doc | {"settings": self.settings.raw}, ensure_ascii=True).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a gate answers: a complete verdict and the lane (`high`, `normal` or `low`)."""

    verdict: dict[str, Any]
    lane: str


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished request: its key and either a result or an error."""

    key: str
    result: Checked | None
    error: Exception | None


class BackgroundWorker:
    """A queue of requests in front of one process. They finish in the order in which they were submitted."""

    def __init__(self, wake: Callable[[], None], module: str = MODULE) -> None:
        self._wake = wake
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._answers: deque[bytes] = deque()
        self._running: deque[str] = deque()
        self._ready = threading.Event()
        self._ended = threading.Event()

    def __len__(self) -> int:
        return len(self._running)

    def submit(self, key: str, request: GateRequest) -> None:
        """Queue a request. Forks on first use: call from the main thread.

        Raises:
            OSError: the process cannot be started or has just ended; nothing is queued.
        """
        if self._ended.is_set() and not self._running:
            self._bury()  # it died while idle: nobody's fault
        process = self._process or self._start()
        try:
            _write_all(process, request.line())
        except OSError:
            process.kill()  # half a request may stand in the pipe
            raise
        self._running.append(key)

    def collect(self) -> list[Finished]:
        """What has finished since the last call, oldest first."""
        finished = []
        ended = self._ended.is_set()  # before the answers: those that came until then are all there
        while self._answers and self._running:
            finished.append(_finished(self._running.popleft(), self._answers.popleft()))
        if ended:
            death = WorkerDiedError("it ended") if self._ready.is_set() else WorkerNotStartedError()
            finished += [Finished(key, None, death) for key in self._running]
            self._bury()
        return finished

    def kill(self) -> None:
        """SIGKILL to a process that does not come back: its request ends as WorkerDiedError."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """End the process now; requests on the way are forgotten (their claims are found again at the next start)."""
        self.kill()
        self._bury()

    def _start(self) -> "subprocess.Popen[bytes]":
        self._ended.clear()
        self._ready.clear()
        process = subprocess.Popen(
            guarded([sys.executable, "-m", self._module]),
            env=guarded_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._process = process
        self._reader = threading.Thread(target=self._read, args=(process,), name="gate-answers", daemon=True)
        self._reader.start()
        return process

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        if process.stdout is not None:
            rest = b""
            while piece := process.stdout.read(1 << 16):
                *lines, rest = (rest + piece).split(b"\n")
                if lines and not self._ready.is_set():
                    lines.pop(0)
                    self._ready.set()
                self._answers.extend(lines)
                self._wake()
        self._ended.set()
        self._wake()

    def _bury(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if self._reader is not None:  # the end of the process is the end of its pipe
                self._reader.join(timeout=5)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._running.clear()
        self._answers.clear()
        self._ended.clear()


def _write_all(process: "subprocess.Popen[bytes]", data: bytes) -> None:
    """A pipe may take less than it is given when a signal comes in between."""
    left = memoryview(data)
    while left and process.stdin is not None:
        left = left[process.stdin.write(left) or 0 :]


def _finished(key: str, line: bytes) -> Finished:
    try:
        doc = json.loads(line)
    except ValueError as error:
        return Finished(key, None, GateBugError(f"an answer that is no JSON: {error}"))
    if "verdict" in doc:
        return Finished(key, Checked(doc["verdict"], doc["lane"]), None)
    return Finished(key, None, error_from(doc))


def error_document(error: BaseException) -> dict[str, Any]:
    """An error as JSON, with the number of the system's error below it, which decides what becomes of the file."""
    cause = error if isinstance(error, OSError) else error.__cause__
    number = cause.errno if isinstance(cause, OSError) else errno.ENOMEM if isinstance(error, MemoryError) else None
    if isinstance(error, DropforgeError):
        known = {"message": error.message, "where": error.where, "fix": error.fix, "slug": error.slug}
        return {"errno": number, "kind": "resource" if isinstance(error, ResourceError) else "known", **known}
    text = f"{type(error).__name__}: {error}" if number is None else str(error)
    return {"errno": number, "kind": "bug", "message": text[:500], "where": "", "fix": "", "slug": "gate_error"}


def error_from(doc: dict[str, Any]) -> Exception:
    """The way back."""
    if doc["errno"] is not None:
        return OSError(doc["errno"], doc["message"])
    if doc["kind"] == "bug":
        return GateBugError(doc["message"])
    made = ResourceError if doc["kind"] == "resource" else DataError
    error = made(doc["message"], where=doc["where"], fix=doc["fix"])
    error.slug = doc["slug"]
    return error
