"""A root of its own and the processes of `dropforge up` in it, used as a person would: folders, the CLI and HTTP.

Writes   the root (through `dropforge init`), its config.json, files into inbox/
Reads    verdicts, status/, the answers of the inference server and the monitor
Units    seconds
Errors   FarmError saying what was waited for, with the end of the log of `up`
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar  # Any: configuration, verdicts and status files are JSON

import requests

from core.atomic import read_json, write_json
from core.paths import Workspace
from core.status import read_status
from core.verdicts import all_verdicts

POLL_S = 0.2
STREAMS = 16  # questions asked at once
_ANSWER_TIMEOUT_S = 120.0
_STOP_S = 60.0

T = TypeVar("T")


class FarmError(Exception):
    """The farm did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the served model said, and the checkpoint that said it."""

    text: str
    checkpoint: str


class Farm:
    """One root and its processes.

    Args:
        root: a folder that does not exist yet.
        settings: what its config.json says beyond the defaults, by section.
    """

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        self.workspace = Workspace(root)
        self._command = [str(Path(sys.executable).with_name("dropforge")), "--root", str(root)]
        self._up: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self._run([*self._command[:1], "init", str(root)])
        self._configure(settings)

    def _configure(self, settings: dict[str, Any]) -> None:
        config = read_json(self.workspace.config_file)
        for section, values in settings.items():
            if isinstance(values, dict):
                config.setdefault(section, {}).update(values)
            else:
                config[section] = values
        inference, monitor = config.setdefault("inference", {}), config.setdefault("monitor", {})
        inference["port"] = _free_port(inference.get("port", 8765))
        monitor["ports"] = [_free_port(port) for port in monitor.get("ports", [8080, 8081])]
        write_json(self.workspace.config_file, config)
        self.url = f"http://127.0.0.1:{inference['port']}"
        self.monitor_url = f"http://127.0.0.1:{monitor['ports'][0]}"

    @property
    def log(self) -> Path:
        """What `up` and its children print."""
        return self.workspace.logs_dir / "up.txt"

    @property
    def pid(self) -> int:
        """Process id of `dropforge up`."""
        return self._up.pid if self._up else 0

    def start(self) -> None:
        """Start daemon, inference server and monitor. They outlive this process unless `stop` is called."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.started_at = time.monotonic()
            self._up = subprocess.Popen(
                [*self._command, "up"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> int | None:
        """Stop what was started as SIGTERM does: a checkpoint, then the end. Returns the exit code of `up`."""
        if self._up is None:
            return None
        if self._up.poll() is None:
            self._up.send_signal(signal.SIGTERM)
        try:
            return self._up.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._up.pid, signal.SIGKILL)  # its own session: nobody else is in that group
            return self._up.wait()

    def wait(self, look: Callable[[], T | None], what: str, seconds: float) -> T:
        """Poll until `look` gives something true, and return it.

        Raises:
            FarmError: the deadline passed or `up` has ended.
        """
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if self._up is not None and self._up.poll() is not None:
                raise FarmError(f"`dropforge up` ended with {self._up.returncode} before {what}\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise FarmError(f"{what} did not happen within {seconds:g} s\n{self._log_end()}")
            time.sleep(POLL_S)
        return found

    def _log_end(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(["the end of " + str(self.log) + ":", *lines[-25:]])

    def cli(self, *arguments: str, expect: Sequence[int] = (0,)) -> str:
        """Run a `dropforge` command in this root and return its stdout. Raises FarmError on another exit code."""
        return self._run([*self._command, *arguments], expect)

    @staticmethod
    def _run(argv: Sequence[str], expect: Sequence[int] = (0,)) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode not in expect:
            raise FarmError(f"`{' '.join(argv)}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def facts(self, *arguments: str, expect: Sequence[int] = (0,)) -> Any:  # any JSON document
        """The JSON that a `dropforge` command prints with --json."""
        return json.loads(self.cli(*arguments, "--json", expect=expect))

    def status(self, name: str) -> dict[str, Any]:
        """status/<name>.json, empty when it is not there."""
        return read_status(self.workspace.status_file(f"{name}.json")) or {}

    def verdicts(self) -> dict[str, dict[str, Any]]:
        """The verdict of every dropped file by its name, the newest when a name came twice."""
        return {verdict["file"]: verdict for verdict in all_verdicts(self.workspace)}

    def ready(self) -> str | None:
        """The id of the checkpoint that answers now, or None."""
        try:
            if requests.get(f"{self.url}/ready", timeout=5).status_code != 200:
                return None
            serving = requests.get(f"{self.url}/v1/checkpoints", timeout=5).json().get("serving")
        except (requests.RequestException, ValueError):
            return None
        return str(serving) if serving else None

    def get_monitor(self, path: str) -> requests.Response:
        """GET a page or JSON twin of the monitor. Raises requests' own errors."""
        return requests.get(f"{self.monitor_url}{path}", timeout=10)

    def ask(self, messages: Sequence[dict[str, str]], max_tokens: int) -> Answer:
        """One greedy answer of the served model, over HTTP.

        Raises:
            FarmError: the server answered with an error.
        """
        body = {"model": "dropforge", "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        reply = requests.post(f"{self.url}/v1/chat/completions", json=body, timeout=_ANSWER_TIMEOUT_S)
        if reply.status_code != 200:
            raise FarmError(f"the server answered {reply.status_code}: {reply.text[:500]}")
        text = reply.json()["choices"][0]["message"]["content"]
        return Answer(text or "", reply.headers["X-Dropforge-Checkpoint"])

    def ask_all(self, questions: Iterable[Sequence[dict[str, str]]], max_tokens: int) -> list[Answer]:
        """The answers to many questions in their order, `STREAMS` asked at once."""
        with ThreadPoolExecutor(STREAMS) as pool:
            return list(pool.map(lambda messages: self.ask(messages, max_tokens), questions))


def _free_port(wanted: int) -> int:
    """`wanted` when nobody listens there, else one the system picks, so that a farm already running is left alone."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise FarmError("no free port on 127.0.0.1")
