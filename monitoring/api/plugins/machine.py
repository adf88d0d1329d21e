"""GPUs, CPU, memory, disk, and the memory of each of our processes (beside all arrows).

Reads    NVML through core.gpu's helper process, /proc, status/daemon.json for the process numbers
"""

import os
from collections.abc import Iterator

from core.gpu import GpuProbe, SystemProbe, read_processes
from core.paths import Workspace
from core.status import read_status
from monitoring.api.query import Document, Query


class MachinePlugin:
    """/api/gpu: what the machine has and how much of it is in use."""

    name = "gpu"
    parameters = ()

    def __init__(self, workspace: Workspace, probe: GpuProbe) -> None:
        self._workspace = workspace
        self._probe = probe
        self._system = SystemProbe(workspace.root)

    def read(self, query: Query) -> Document:
        """{"gpus": [...] (empty without a GPU), "driver", "error", "system", "processes": [{name, pid, rss_bytes}]}."""
        reading = self._probe.read().as_dict()
        named = dict(self._processes())
        facts = [{"name": named[p.pid], "pid": p.pid, "rss_bytes": p.rss_bytes} for p in read_processes(named)]
        return {
            "gpus": list(reading["devices"]),
            "driver": reading["driver"],
            "error": reading["error"],
            "system": self._system.read().as_dict(),
            "processes": facts,
        }

    def _processes(self) -> Iterator[tuple[int, str]]:
        yield os.getpid(), "monitor"
        daemon = read_status(self._workspace.status_file("daemon.json")) or {}
        children = daemon.get("children")
        said = [("daemon", daemon), *(children.items() if isinstance(children, dict) else ())]
        for name, facts in said:
            pid = facts.get("pid") if isinstance(facts, dict) else None
            if isinstance(pid, int) and pid > 0:
                yield pid, name
