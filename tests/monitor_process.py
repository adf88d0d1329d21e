"""The monitor over a root with real sockets: as a process, or as a thread where a second interpreter adds nothing."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import requests

from core.gpu import FakeGpuProbe
from core.paths import Workspace
from core.settings import load_settings
from farm import free_port
from monitoring.api.aggregator import build_aggregator
from monitoring.api.events import Streams
from monitoring.app import create_app
from monitoring.guard import build_guard
from monitoring.server import open_sockets, serve

REPOSITORY = Path(__file__).resolve().parent.parent


class Listening:
    """Where a monitor listens. `url` is the first port's address, `other_url` the second's."""

    def __init__(self) -> None:
        self.ports = [free_port(), free_port()]
        self.url, self.other_url = (f"http://localhost:{port}" for port in self.ports)

    def metric(self, name: str) -> float:
        """One number of /metrics."""
        lines = requests.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])


class MonitorThread(Listening):
    """The same parts as `monitoring.__main__.run` in a thread of the test."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__()
        settings = load_settings(workspace)
        streams = Streams(workspace, settings.run)
        app = create_app(build_aggregator(workspace, settings, FakeGpuProbe()), streams, build_guard("127.0.0.1", {}))
        sockets = open_sockets("127.0.0.1", self.ports)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=serve, args=(app, sockets, self._stopping, streams.end))
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(15)
        assert not self._thread.is_alive()


class MonitorProcess(Listening):
    """`python -m monitoring` on two free ports."""

    def __init__(self, root: Path, environment: dict[str, str] | None = None, host: str = "127.0.0.1") -> None:
        super().__init__()
        argv = [sys.executable, "-m", "monitoring", "--root", str(root)]
        argv += ["--set", f"monitor.ports={self.ports}", "--set", f"monitor.host={host}"]
        self.process = subprocess.Popen(
            argv,
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                requests.get(f"{self.url}/health", timeout=2)
            except requests.ConnectionError:
                time.sleep(0.05)
            else:
                return
        self.process.kill()
        raise AssertionError(f"the monitor did not start: {self.process.communicate()[0]}")

    def stop(self) -> tuple[int, str]:
        """SIGTERM; returns the exit code and everything it printed."""
        self.process.terminate()
        try:
            output = self.process.communicate(timeout=15)[0]
        finally:
            self.process.kill()
        return self.process.returncode, output
