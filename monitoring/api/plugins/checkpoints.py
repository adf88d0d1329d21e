"""Checkpoints and the leaderboard (arrows: checkpoints, judge).

Reads    manifests through Manifests; status/leaderboard.json; checkpoints/<run>/evaluations/<id>/metrics.json
"""

from core.atomic import read_json
from core.errors import JsonError, StorageError
from core.paths import Workspace
from core.status import read_status
from monitoring.api.manifests import Manifests
from monitoring.api.query import Document, Query


class CheckpointsPlugin:
    """/api/checkpoints: {"checkpoints": [manifest]}, oldest first."""

    name = "checkpoints"
    parameters = ("newest",)

    def __init__(self, workspace: Workspace, run: str, manifests: Manifests) -> None:
        self._workspace = workspace
        self._run = run
        self._manifests = manifests

    def read(self, query: Query) -> Document:
        """The manifests of the checkpoints on disk; `newest=N` gives the last N. `total` counts all."""
        newest = query.integer("newest", None, 1, 10_000)
        found = self._manifests.committed()
        return {"checkpoints": found if newest is None else found[-newest:], "total": len(found)}

    def find(self, key: str) -> Document:
        """{"checkpoints": [manifest], "evaluation": metrics.json or null, "deploy": deploy.json or null}."""
        manifest = self._manifests.resolve(key)
        folder = self._workspace.evaluation_dir(self._run, manifest["id"])
        documents: Document = {}
        for name, file in (("evaluation", "metrics.json"), ("deploy", "deploy.json")):
            try:
                documents[name] = read_json(folder / file)
            except (JsonError, StorageError):
                documents[name] = None
        return {"checkpoints": [manifest], **documents}


class LeaderboardPlugin:
    """/api/leaderboard: status/leaderboard.json, empty before the first judgement."""

    name = "leaderboard"
    parameters = ()

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def read(self, query: Query) -> Document:
        """{"serving": id or null, "candidates": [...]}."""
        empty: Document = {"serving": None, "candidates": []}
        return empty | (read_status(self._workspace.status_file("leaderboard.json")) or {})
