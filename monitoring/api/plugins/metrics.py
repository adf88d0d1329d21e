"""The loss curve of a run (arrow: trainer)."""

from core.paths import Workspace
from core.settings import Settings
from monitoring.api.query import Document, Query


class MetricsPlugin:
    name = "metrics"
    parameters = ("run", "since", "max_points")

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self._workspace = workspace
        self._run = settings.run

    def read(self, query: Query) -> Document:
        return {"run": self._run, "points": []}
