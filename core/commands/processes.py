"""Commands that run processes in the foreground: one of them, or all under one supervisor. Beside the arrows: the CLI.

Reads    config.json, config/hosts.json          Writes  status/logs/{serve,monitor}.out, what those processes print
Errors   ConfigError for a taken port; AlreadyRunningError when a daemon holds this root
Effects  `daemon`, `serve`, `monitor` replace this process; `up` starts the three as children and forks from its main
         thread only, so that they end with it
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import click

from core.commands.invocation import common_options, current, finish
from core.commands.ports import addresses, answers, require_free
from core.daemon.children import SHARED_CPU
from core.daemon.pid_manager import InstanceLock
from core.daemon.supervisor import ChildExit, ChildSpec, Restart, Supervisor
from core.errors import AlreadyRunningError, ConfigError, StorageError, UsageError
from core.hosts import bound_url, load_hosts, serving_url
from core.paths import Workspace
from core.settings import Settings

_TICK_S = 0.1
_ASK_EVERY_S = 0.5
_PORT_WAIT_S = 5.0  # an earlier instance that is ending lets go within it
_DAEMON_GRACE_S = 300.0  # the step, the commit of a large model and its fsync
_STREAMS_GRACE_S = 40.0  # the inference server lets streams finish for 30 of them, then writes out what it has
_SERVER_GRACE_S = 120.0  # how long --exit-when-idle waits for a server that is loading its first model
_FINAL_CODES = (UsageError.exit_code, AlreadyRunningError.exit_code, StorageError.exit_code)


def become(module: str, *options: str) -> None:
    """Become `python -m module`: signals reach it directly and its exit code is ours."""
    workspace = current().workspace()
    current().settings(workspace)
    environment = os.environ | current().environment()
    argv = [sys.executable, "-m", module, "--root", str(workspace.root), *options]
    sys.stdout.flush()
    os.execve(sys.executable, argv, environment)  # noqa: S606  # no shell wanted: argv is a list of ours


@click.command("daemon")
@click.option("--exit-when-idle", is_flag=True, help="End with 0 when nothing is left to do.")
@common_options
def daemon_command(exit_when_idle: bool) -> None:
    """Run the daemon alone: it takes files in, trains, judges and publishes."""
    become("core.daemon", *(["--exit-when-idle"] if exit_when_idle else []))


@click.command("serve")
@common_options
def serve_command() -> None:
    """Run the inference server alone, as a second host does."""
    become("inference")


@click.command("monitor")
@common_options
def monitor_command() -> None:
    """Run the monitor alone: the page and its API."""
    become("monitoring")


@click.command("up")
@click.option("--exit-when-idle", is_flag=True, help="End with 0 when nothing is left to do.")
@common_options
def up_command(exit_when_idle: bool) -> None:
    """Run daemon, inference server and monitor until SIGINT or SIGTERM."""
    workspace = current().workspace()
    settings = current().settings(workspace)
    role = _local_role(workspace)
    _require_ports(workspace, settings, serve=role != "trainer")
    options = ["--exit-when-idle", "--server-grace-s", f"{_SERVER_GRACE_S:g}"] if exit_when_idle else []
    specs = child_specs(workspace, current().environment(), options)
    specs = [spec for spec in specs if spec.name != "serve" or role != "trainer"]
    click.echo(f"starting; drop files into {workspace.inbox}; Ctrl-C ends it", err=True)
    serving, watching = serving_url(workspace, settings), bound_url(settings.monitor.host, settings.monitor.ports[0])
    awaited = {f"monitor  {watching}/": f"{watching}/health"}
    if role == "trainer":
        click.echo(f"answers  {serving}/v1 (another host)", err=True)
    else:
        awaited[f"answers  {serving}/v1"] = f"{serving}/ready"
    code = Up(Supervisor(specs), awaited).run()
    finish(code)


def _local_role(workspace: Workspace) -> str:
    """What config/hosts.json makes this machine: trainer (another one serves) or both. Raises UsageError."""
    hosts = load_hosts(workspace)
    role = "both" if hosts is None else hosts.local.role
    if role == "inference":
        raise UsageError("this host only serves", where=str(workspace.hosts_file), fix="dropforge serve")
    return role


def _require_ports(workspace: Workspace, settings: Settings, *, serve: bool) -> None:
    """Raise AlreadyRunningError when a daemon of ours runs, whether it sits on these ports or on others."""
    try:
        require_free(addresses(settings, serve=serve), _PORT_WAIT_S)
    except ConfigError:
        InstanceLock.acquire(workspace.lock_file, wait_s=0.0).release()
        raise
    InstanceLock.acquire(workspace.lock_file, wait_s=_PORT_WAIT_S).release()


def child_specs(workspace: Workspace, environment: dict[str, str], daemon_options: list[str]) -> list[ChildSpec]:
    """What `up` runs. Only the daemon's end ends `up`; the others are started again, whatever they end with."""

    def spec(name: str, module: str, restart: Restart, output: Path | None, *options: str) -> ChildSpec:
        argv = (sys.executable, "-m", module, "--root", str(workspace.root), *options)
        grace_s = _DAEMON_GRACE_S if output is None else _STREAMS_GRACE_S
        shared = {**SHARED_CPU, **environment}
        return ChildSpec(name, argv, restart, shared, output=output, stop_grace_s=grace_s, fatal_after=None)

    return [
        spec("serve", "inference", Restart.ALWAYS, workspace.logs_dir / "serve.out"),
        spec("monitor", "monitoring", Restart.ALWAYS, workspace.logs_dir / "monitor.out"),
        spec("daemon", "core.daemon", Restart.ON_FAILURE, None, *daemon_options),
    ]


class Up:
    """The loop of `up`: starts the children, passes the wish to stop on, ends when the daemon has ended."""

    def __init__(self, supervisor: Supervisor, awaited: Mapping[str, str] | None = None) -> None:
        """`awaited`: what to say, each once the address it stands for answers."""
        self.supervisor = supervisor
        self._awaited = dict(awaited or {})
        self._ask_at_s = 0.0
        self._wishes_seen = 0
        self._wishes = 0
        self.code: int | None = None

    def run(self) -> int:
        """Return the exit code: the daemon's own, 0 after a wished stop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.on_signal)
        for child in self.supervisor:
            child.start(time.monotonic())
        while not self.tick(time.monotonic()):
            time.sleep(_TICK_S)
        return self.code or 0

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Remember the wish; the loop acts."""
        self._wishes += 1

    def tick(self, now: float) -> bool:
        """Look once. Returns True when everything has ended."""
        for ended in self.supervisor.tick(now):
            self._after(ended, now)
        if self._awaited and now >= self._ask_at_s and self.code is None:
            self._announce(now)
        if self._wishes > self._wishes_seen:
            self._wishes_seen = self._wishes
            self._end(0, now) if self.code is None else self.supervisor.kill_all()
        if self.code is not None and self.supervisor["daemon"].at_rest:
            self.supervisor.stop_all(now)  # after the daemon, which talks to the server to its last moment
        return self.code is not None and self.supervisor.at_rest

    def _announce(self, now: float) -> None:
        """Say where the processes are to be found, when there is somebody to be found."""
        for line in [line for line, address in self._awaited.items() if answers(address)]:
            click.echo(line, err=True)
            del self._awaited[line]
        self._ask_at_s = now + _ASK_EVERY_S

    def _after(self, ended: ChildExit, now: float) -> None:
        if ended.name == "daemon" and (ended.returncode == 0 or ended.returncode in _FINAL_CODES):
            self._end(ended.returncode, now)
        elif ended.returncode != 0 and not ended.asked:
            click.echo(f"{ended.name}: {self.supervisor[ended.name].reason}; starting it again", err=True)

    def _end(self, code: int, now: float) -> None:
        self.code = code if self.code is None else self.code
        self.supervisor["daemon"].stop(now)
