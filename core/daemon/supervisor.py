"""Child processes with states and back-off: how the daemon and `dropforge up` keep others running (beside all arrows).

Writes   the child's output to its log file          Units  seconds, by a monotonic clock
Errors   none of its own: what goes wrong with a child is its state and its `reason`
Effects  forks from the calling (main) thread; children get our pid for pid_manager.die_with_parent
Used by  daemon (trainer, judge, publisher) and up (daemon, serve, monitor)
"""

import enum
import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from core.daemon.pid_manager import PARENT_VARIABLE
from core.errors import DropforgeError

logger = logging.getLogger(__name__)

_OUTPUT_LIMIT_BYTES = 10_000_000
_TAIL_BYTES = 8192


class State(enum.StrEnum):
    """Where a child stands."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    FATAL = "FATAL"


_ALLOWED = {
    State.STARTING: {State.RUNNING, State.BACKOFF, State.STOPPING, State.EXITED, State.FATAL},
    State.RUNNING: {State.BACKOFF, State.STOPPING, State.EXITED, State.FATAL},
    State.BACKOFF: {State.STARTING, State.EXITED, State.FATAL},
    State.STOPPING: {State.EXITED},
    State.EXITED: {State.STARTING},
    State.FATAL: {State.STARTING, State.EXITED},
}


class Restart(enum.StrEnum):
    """What follows an exit nobody asked for."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How a child ended: `returncode` is negative for a signal, as in subprocess."""

    name: str
    returncode: int
    uptime_s: float
    asked: bool

    @property
    def killed(self) -> bool:
        return self.returncode == -signal.SIGKILL


def failed_by_itself(ended: ChildExit) -> bool:
    """The default of what counts towards FATAL: any failure but a SIGKILL, which somebody else sent."""
    return ended.returncode != 0 and not ended.killed


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run and how to keep it running. Times in seconds."""

    name: str
    argv: tuple[str, ...]
    restart: Restart = Restart.ALWAYS
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    output: Path | None = None  # None: our own stderr
    running_after_s: float = 1.0
    stop_grace_s: float = 20.0
    backoff_base_s: float = 0.5
    backoff_max_s: float = 30.0
    fatal_after: int | None = 5  # failures in a row, none of which lived `healthy_after_s`
    healthy_after_s: float = 30.0
    counts: Callable[[ChildExit], bool] = failed_by_itself
    before_start: Callable[[], None] = lambda: None  # may raise DropforgeError: counts as a failure to start
    final_codes: frozenset[int] = frozenset()  # exit codes after which another try would end the same way


class Process(Protocol):
    """The part of subprocess.Popen that is used."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def send_signal(self, sig: int) -> None: ...


Spawn = Callable[[ChildSpec], Process]


# A child that still imports torch when we are killed has not asked for its parent-death signal yet, and would hold
# the lock for seconds. So it is asked for before the exec (which keeps it), in 20 ms, and without a preexec_fn, which
# is not safe in a process with threads. SIGINT (2) is ignored from here on too, by the child and by what it starts: a
# Ctrl-C reaches the whole process group, and the parent alone decides how its children end.
_ASK_THEN_EXEC = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.prctl(1, 9, 0, 0, 0)
libc.signal(2, ctypes.c_void_p(1))
os.getppid() == int(sys.argv[1]) or sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def guarded(argv: Sequence[str]) -> list[str]:
    """The argv that asks for the parent-death signal and then runs `argv`. Raises FileNotFoundError."""
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "no such program", argv[0])
    return [sys.executable, "-I", "-S", "-c", _ASK_THEN_EXEC, str(os.getpid()), program, *argv[1:]]


def guarded_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment, what a child gets on top, and our pid for pid_manager.die_with_parent."""
    return os.environ | dict(more or {}) | {PARENT_VARIABLE: str(os.getpid())}


def spawn(spec: ChildSpec) -> Process:
    """Start a child in our process group, its input closed, killed by the kernel when we end. Raises OSError."""
    argv = guarded(spec.argv)
    output = _open_output(spec.output)
    try:
        return subprocess.Popen(
            argv,
            env=guarded_environment(spec.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=spec.pass_fds,
        )
    finally:
        if output is not None:
            os.close(output)


def _open_output(path: Path | None) -> int | None:
    """Append to the child's output file; a file grown too long is started again, the old one kept once."""
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _OUTPUT_LIMIT_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def last_line(path: Path | None, begun_at: int = 0) -> str:
    """The last non-empty line a child wrote, at most 300 characters: mostly the sentence that explains its end.

    Args:
        begun_at: the size of its output file in bytes when it was started: what stands before is another one's.
    """
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begun_at = begun_at if begun_at <= size else 0  # the file was begun anew
            file.seek(max(begun_at, size - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line), "")[:300]


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0


class Child:
    """One supervised process. Every change of state goes through `transition`."""

    def __init__(self, spec: ChildSpec, *, start: Spawn = spawn, jitter: Callable[[], float] = random.random) -> None:
        self.spec = spec
        self.state = State.EXITED
        self.reason = ""
        self.restarts = 0
        self.failures = 0
        self.last_exit: ChildExit | None = None
        self._start = start
        self._jitter = jitter
        self._process: Process | None = None
        self._since_s = 0.0
        self._until_s = 0.0
        self._output_begun_at = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        return self._process is not None

    @property
    def at_rest(self) -> bool:
        """True when nothing runs and nothing is going to by itself."""
        return self.state in (State.EXITED, State.FATAL)

    def transition(self, state: State, reason: str = "") -> None:
        if state not in _ALLOWED[self.state]:
            raise ValueError(f"{self.spec.name}: no way from {self.state} to {state}")
        level = logging.ERROR if state is State.FATAL else logging.INFO
        logger.log(level, "%s: %s -> %s%s", self.spec.name, self.state, state, f" ({reason})" if reason else "")
        self.state, self.reason = state, reason

    def start(self, now: float) -> None:
        """Start now; nothing when it already runs. Clears an earlier FATAL."""
        if self.alive:
            return
        if self.state is State.FATAL:
            self.failures = 0
        self.transition(State.STARTING)
        self._since_s = now
        self._output_begun_at = _size(self.spec.output)
        try:
            self.spec.before_start()
            self._process = self._start(self.spec)
        except OSError as error:
            self._after_failure(now, f"cannot start {self.spec.argv[0]}: {error.strerror}")
        except DropforgeError as error:
            self._back_off(now, f"cannot start: {error}", attempt=1)

    def stop(self, now: float) -> None:
        """Ask for an end with SIGTERM; SIGKILL follows after `stop_grace_s`."""
        if self.state in (State.BACKOFF, State.FATAL):
            self.transition(State.EXITED)
        elif self.alive and self.state is not State.STOPPING:
            self.transition(State.STOPPING)
            self._until_s = now + self.spec.stop_grace_s
            self.signal(signal.SIGTERM)

    def expect_end(self, now: float) -> None:
        """The child was asked to end in another way (an order): treat its exit as wanted, kill it after the grace."""
        if self.state in (State.BACKOFF, State.FATAL):
            self.transition(State.EXITED)
        elif self.alive and self.state is not State.STOPPING:
            self.transition(State.STOPPING)
            self._until_s = now + self.spec.stop_grace_s

    def give_up(self, reason: str) -> None:
        """Do not start again until somebody asks."""
        if not self.alive and self.state in (State.BACKOFF, State.STARTING, State.EXITED):
            if self.state is State.EXITED:
                self.transition(State.STARTING)
            self.transition(State.FATAL, reason)

    def signal(self, number: int) -> None:
        """Send a signal to the child if it lives. (A reaped pid is never signalled: Popen keeps the zombie.)"""
        if self._process is not None:
            self._process.send_signal(number)

    def tick(self, now: float) -> ChildExit | None:
        """Look once; returns how the child ended when it did since the last look."""
        if self._process is None:
            if self.state is State.BACKOFF and now >= self._until_s:
                self.restarts += 1
                self.start(now)
            return None
        code = self._process.poll()
        if code is not None:
            return self._reap(code, now)
        if self.state is State.STARTING and now - self._since_s >= self.spec.running_after_s:
            self.transition(State.RUNNING)
        if self.state is State.STOPPING and now >= self._until_s:
            self.signal(signal.SIGKILL)
        return None

    def _reap(self, code: int, now: float) -> ChildExit:
        self._process = None
        asked = self.state is State.STOPPING
        ended = ChildExit(self.spec.name, code, now - self._since_s, asked)
        self.last_exit = ended
        if asked or not self._again(code):
            self.transition(State.EXITED, "" if code == 0 or asked else self._explain(code))
            return ended
        if ended.uptime_s >= self.spec.healthy_after_s:
            self.failures = 0
        if self.spec.counts(ended):
            self._after_failure(now, self._explain(code))
        else:
            self._back_off(now, self._explain(code), attempt=1)
        return ended

    def _again(self, code: int) -> bool:
        if code in self.spec.final_codes:
            return False
        return self.spec.restart is Restart.ALWAYS or (self.spec.restart is Restart.ON_FAILURE and code != 0)

    def _explain(self, code: int) -> str:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if -code in (signal.SIGKILL, signal.SIGTERM):
            return how  # its last words were of something else
        said = last_line(self.spec.output, self._output_begun_at)
        return f"{how}: {said}" if said and code != 0 else how

    def _after_failure(self, now: float, reason: str) -> None:
        self.failures += 1
        if self.spec.fatal_after is not None and self.failures >= self.spec.fatal_after:
            self.transition(State.FATAL, reason)
        else:
            self._back_off(now, reason, attempt=self.failures)

    def _back_off(self, now: float, reason: str, *, attempt: int) -> None:
        """Full delays double up to the cap; half of each is drawn, so that many roots do not start in step."""
        full = min(self.spec.backoff_max_s, self.spec.backoff_base_s * 2.0 ** (attempt - 1))
        self._until_s = now + full * (0.5 + 0.5 * self._jitter())
        self.transition(State.BACKOFF, reason)


class Supervisor:
    """Several children under one clock."""

    def __init__(self, specs: Sequence[ChildSpec] = (), *, start: Spawn = spawn) -> None:
        self._start = start
        self._children: dict[str, Child] = {}
        for spec in specs:
            self.add(spec)

    def add(self, spec: ChildSpec) -> Child:
        """Register a child (replacing one of that name that is at rest). It is not started."""
        old = self._children.get(spec.name)
        if old is not None and not old.at_rest:
            raise ValueError(f"{spec.name} is {old.state}")
        child = Child(spec, start=self._start)
        if old is not None:
            child.restarts = old.restarts
        self._children[spec.name] = child
        return child

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def __iter__(self) -> Iterator[Child]:
        return iter(self._children.values())

    def tick(self, now: float) -> list[ChildExit]:
        """Look at every child once; returns the exits found."""
        return [ended for child in list(self) if (ended := child.tick(now)) is not None]

    def stop_all(self, now: float) -> None:
        for child in self:
            child.stop(now)

    def kill_all(self) -> None:
        """SIGKILL to all: for the second SIGTERM."""
        for child in self:
            child.signal(signal.SIGKILL)

    @property
    def at_rest(self) -> bool:
        return all(child.at_rest for child in self)

    def report(self) -> dict[str, dict[str, object]]:
        """The `children` of status/daemon.json."""
        return {
            child.spec.name: {
                "state": child.state.value,
                "pid": child.pid,
                "restarts": child.restarts,
                "reason": child.reason or None,
            }
            for child in self
        }
