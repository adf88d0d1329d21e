"""A whole Dropforge in a temporary root, run and killed as a user would: `dropforge up` and the real command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import requests

from core.job_queue import JobQueue
from core.paths import Workspace

DROPFORGE = Path(sys.executable).with_name("dropforge")
QUICK = {"inbox": {"settle_s": 0.2}, "trainer": {"threads": 1}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Farm:
    """One root with its processes. `stop` is a SIGTERM to `up`; `kill` is a SIGKILL to the whole process group."""

    def __init__(self, root: Path, config: Mapping[str, Any] | None = None) -> None:
        self.workspace = Workspace(root)
        self._ports: dict[str, dict[str, Any]] = {
            "inference": {"port": free_port()},
            "monitor": {"ports": [free_port()]},
        }
        self.server = f"http://127.0.0.1:{self._ports['inference']['port']}"
        self.monitor = f"http://127.0.0.1:{self._ports['monitor']['ports'][0]}"
        self.cli("init", str(root), check=True)
        self.configure(**{**QUICK, **(config or {})})
        self._up: subprocess.Popen[bytes] | None = None

    def configure(self, **sections: Any) -> None:
        """Merge sections into config.json; the ports stay this farm's own."""
        document = json.loads(self.workspace.config_file.read_text())
        for name, value in {**sections, **self._ports}.items():
            document[name] = {**document.get(name, {}), **value} if isinstance(value, dict) else value
        self.workspace.config_file.write_text(json.dumps(document))

    def cli(self, *arguments: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "DROPFORGE_ROOT": str(self.workspace.root), "OMP_NUM_THREADS": "1"}
        argv = [str(DROPFORGE), *arguments]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=check, timeout=120)

    def json(self, *arguments: str) -> Any:
        done = self.cli(*arguments, "--json")
        assert done.stdout, f"{arguments}: exit {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout)

    def start(self, *options: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        argv = [str(DROPFORGE), "--root", str(self.workspace.root), "up", *options]
        self.workspace.logs_dir.mkdir(parents=True, exist_ok=True)
        with (self.workspace.logs_dir / "up.out").open("ab") as out:
            self._up = subprocess.Popen(argv, env=environment, stdout=out, stderr=out, start_new_session=True)

    def stop(self, seconds: float = 60) -> int:
        assert self._up is not None
        self._up.terminate()
        return self.wait(seconds)

    def interrupt(self, seconds: float = 60) -> int:
        """Ctrl-C in a terminal: SIGINT to every process of the group at once."""
        assert self._up is not None
        os.killpg(self._up.pid, signal.SIGINT)
        return self.wait(seconds)

    def wait(self, seconds: float = 60) -> int:
        """Wait for `up` to end and return its exit code."""
        assert self._up is not None
        code = self._up.wait(seconds)
        self._up = None
        return code

    def kill(self) -> None:
        """Every process of the farm at once, as a power cut would."""
        if self._up is not None:
            os.killpg(self._up.pid, signal.SIGKILL)
            self._up.wait(30)
            self._up = None

    def child_pid(self, name: str) -> int | None:
        status = self.status("daemon.json") or {}
        child = status.get("children", {}).get(name) or {}
        return child.get("pid")

    def status(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads(self.workspace.status_file(name).read_text())  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None

    def drop(self, name: str, rows: list[dict[str, Any]] | str, sidecar: dict[str, Any] | None = None) -> Path:
        """Write aside in the inbox and rename, the documented way."""
        target = self.workspace.inbox / name
        if sidecar is not None:
            target.with_name(f"{name}.meta.json").write_text(json.dumps(sidecar))
        aside = self.workspace.inbox / f".{name}.tmp"
        aside.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        aside.rename(target)
        return target

    def lane(self, name: str) -> list[dict[str, Any]]:
        return [job.verdict() for job in JobQueue(self.workspace).jobs(name)]

    def rejected(self) -> list[dict[str, Any]]:
        files = sorted(self.workspace.rejected_dir.glob("*/verdict.json"))
        return [json.loads(path.read_text()) for path in files]

    def ended(self) -> int:
        queue = JobQueue(self.workspace)
        return sum(queue.count(lane) for lane in ("done", "failed", "held")) + len(self.rejected())

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._up is not None and self._up.poll() is not None:
                raise AssertionError(f"`up` ended with {self._up.returncode} before {what}\n{self.story()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come true within {seconds:g} s\n{self.story()}")
            time.sleep(0.05)

    def story(self) -> str:
        """The last words of every process, for a failing test."""
        parts = []
        for path in sorted(self.workspace.logs_dir.glob("*")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(parts)

    def serving(self) -> str | None:
        try:
            answer = requests.get(f"{self.server}/v1/checkpoints", timeout=5)
        except requests.ConnectionError:
            return None
        return answer.json().get("serving")  # type: ignore[no-any-return]
