"""Whether a daemon lives in a root, from what it last said. Beside the arrows: the CLI.

Reads    status/daemon.json, /proc          Writes  nothing
Units    seconds
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any  # status files are JSON

from core.paths import Workspace
from core.status import STALE_AFTER_S, age_s, read_status


def daemon_runs(workspace: Workspace) -> bool:
    """True when the daemon has spoken lately and its process is there."""
    daemon = read_status(workspace.status_file("daemon.json")) or {}
    age = age_s(daemon.get("heartbeat"))
    fresh = daemon.get("state") != "stopped" and age is not None and age < STALE_AFTER_S
    return fresh and not daemon_gone(daemon)


def daemon_gone(daemon: Mapping[str, Any]) -> bool:
    """True when it did not say that it stops and its process is no longer there.

    Args:
        daemon: what status/daemon.json says.
    """
    return daemon.get("state") != "stopped" and not Path("/proc", str(daemon.get("pid"))).is_dir()
