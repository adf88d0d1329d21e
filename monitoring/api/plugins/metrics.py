"""The loss curve of a run (arrow: trainer).

Reads    the ledger through core.ledger_curve, read-only; a run of another name when asked
Errors   StorageError (503) when the ledger cannot be read
"""

import re

from core.errors import UsageError
from core.ledger import ledger_url
from core.ledger_curve import CurveReader
from core.paths import Workspace
from core.settings import Settings
from monitoring.api.query import Document, Query

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_POINTS = 1000
_MOST_POINTS = 5000


class MetricsPlugin:
    """/api/metrics?run=&since=&max_points="""

    name = "metrics"
    parameters = ("run", "since", "max_points")

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self._run = settings.run
        self._curve = CurveReader(ledger_url(workspace, settings))

    def read(self, query: Query) -> Document:
        """{"run", "since", "points": [...], "last_step"}: at most `max_points` points after step `since`."""
        run = query.text("run") or self._run
        if not _RUN.fullmatch(run):
            raise UsageError("run is no name of a run", where="run", fix=f"run={self._run}")
        since = query.integer("since", None, 0, 10**12)
        most = query.integer("max_points", _POINTS, 1, _MOST_POINTS)
        curve = self._curve.read(run, since=since, max_points=most or _POINTS)
        return {"run": run, "since": since, "points": curve.points, "last_step": curve.last_step}
