"""What the processes say of themselves, and whether they still say it (arrow: all of them).

Reads    status/{daemon,training_status,deployment,control}.json
Units    ages in seconds
"""

from pathlib import Path

from core.daemon.pid_manager import boot_id
from core.paths import Workspace, display_name
from core.status import STALE_AFTER_S, age_s, read_status
from monitoring.api.query import Document, Query

_CLOCK_SLACK_S = 5.0


class StatusPlugin:
    """/api/status: {"daemon", "training", "deployment"} as the files say, `control`, and `health` of each."""

    name = "status"
    parameters = ()

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def read(self, query: Query) -> Document:
        """The status files; a missing or damaged one is null. `health` tells old news from fresh."""
        daemon, training, deployment, control = (
            self._file(name) for name in ("daemon", "training_status", "deployment", "control")
        )
        alive = health(daemon, "heartbeat")
        if alive["state"] == "stale" and _process_is_gone(daemon or {}):
            alive = {**alive, "state": "gone", "message": "the daemon's process is gone; its last words are shown"}
        return {
            "daemon": daemon,
            "training": training,
            "deployment": deployment,
            "control": control,
            "health": {
                "daemon": alive,
                "training": _training_health(training, alive),
                "deployment": health(deployment, "seen_at"),
            },
            "root": display_name(self._workspace.root),
        }

    def _file(self, name: str) -> Document | None:
        return read_status(self._workspace.status_file(f"{name}.json"))


def health(document: Document | None, stamp: str) -> Document:
    """{"state": absent|stopped|ok|stale, "age_s", "message"} of a status file with a heartbeat."""
    if document is None:
        return {"state": "absent", "age_s": None, "message": "it has said nothing yet"}
    age = age_s(_text(document.get(stamp)))
    if document.get("state") == "stopped":
        return {"state": "stopped", "age_s": age, "message": "it was stopped"}
    if age is None:
        return {"state": "stale", "age_s": None, "message": f"its {stamp} cannot be read"}
    if age < -_CLOCK_SLACK_S:
        return {"state": "stale", "age_s": age, "message": f"its {stamp} lies in the future: was the clock set back?"}
    if age > STALE_AFTER_S:
        return {"state": "stale", "age_s": age, "message": f"not heard for {_coarse(age)}"}
    return {"state": "ok", "age_s": age, "message": ""}


def _coarse(age_s: float) -> str:
    """An age that changes rarely: a screen reader reads every change out."""
    if age_s < 90:
        return f"{age_s // 10 * 10:.0f} s"
    return f"{age_s // 60:.0f} min" if age_s < 7200 else f"{age_s // 3600:.0f} h"


def _training_health(training: Document | None, daemon: Document) -> Document:
    found = health(training, "heartbeat")
    if found["state"] == "stale" and daemon["state"] in ("stopped", "absent"):
        return {**found, "state": "stopped", "message": "the daemon that runs it is stopped"}
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _process_is_gone(daemon: Document) -> bool:
    """True when this boot of this machine surely has no such process."""
    if daemon.get("boot_id") != boot_id():
        return daemon.get("boot_id") is not None
    pid = daemon.get("pid")
    return isinstance(pid, int) and pid > 0 and not Path(f"/proc/{pid}").is_dir()
