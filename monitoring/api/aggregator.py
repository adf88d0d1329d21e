"""Gathers the subjects: every /api address is one plugin asked through here (read-only; beside all arrows)."""

from collections.abc import Mapping, Sequence

from core.errors import NotFoundError
from core.gpu import GpuProbe
from core.paths import Workspace
from core.settings import Settings
from monitoring.api.lanes import Lanes
from monitoring.api.manifests import Manifests
from monitoring.api.plugins import Finder, Plugin
from monitoring.api.plugins.checkpoints import CheckpointsPlugin, LeaderboardPlugin
from monitoring.api.plugins.jobs import JobsPlugin, QueuePlugin
from monitoring.api.plugins.journal import JournalPlugin
from monitoring.api.plugins.lineage import LineagePlugin
from monitoring.api.plugins.machine import MachinePlugin
from monitoring.api.plugins.metrics import MetricsPlugin
from monitoring.api.plugins.status import StatusPlugin
from monitoring.api.query import Document, Query


class Aggregator:
    """The plugins by name."""

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._plugins = {plugin.name: plugin for plugin in plugins}

    @property
    def names(self) -> list[str]:
        return list(self._plugins)

    def read(self, name: str, parameters: Mapping[str, str]) -> Document:
        """The document of a subject. Raises NotFoundError or UsageError."""
        plugin = self._plugin(name)
        return plugin.read(Query(parameters, plugin.parameters))

    def find(self, name: str, key: str) -> Document:
        """The document of one thing. Raises NotFoundError."""
        plugin = self._plugin(name)
        if not isinstance(plugin, Finder):
            raise NotFoundError(f"/api/{name} has no single things", fix=f"ask /api/{name}")
        return plugin.find(key)

    def _plugin(self, name: str) -> Plugin:
        if name not in self._plugins:
            raise NotFoundError(f"no /api/{name[:60]}", fix=f"ask one of {', '.join(sorted(self._plugins))}")
        return self._plugins[name]


def build_aggregator(workspace: Workspace, settings: Settings, probe: GpuProbe) -> Aggregator:
    """Every subject of the monitor over one root."""
    lanes, manifests = Lanes(workspace), Manifests(workspace, settings.run)
    return Aggregator(
        [
            StatusPlugin(workspace),
            JobsPlugin(lanes),
            QueuePlugin(workspace, lanes),
            LineagePlugin(workspace, settings.run),
            CheckpointsPlugin(workspace, settings.run, manifests),
            LeaderboardPlugin(workspace),
            MetricsPlugin(workspace, settings),
            MachinePlugin(workspace, probe),
            JournalPlugin(workspace),
        ]
    )
