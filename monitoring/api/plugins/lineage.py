"""Which files made a checkpoint, which checkpoints saw a file, and how each generator fares (arrow: all of them).

Reads    status/data_lineage.json; manifests and verdicts through core.provenance
"""

from core.paths import Workspace
from core.provenance import lineage
from core.status import read_status
from monitoring.api.query import Document, Query


class LineagePlugin:
    """/api/lineage, and /api/lineage/<sha256 of a file, or a checkpoint>."""

    name = "lineage"
    parameters = ()

    def __init__(self, workspace: Workspace, run: str) -> None:
        self._workspace = workspace
        self._run = run

    def read(self, query: Query) -> Document:
        """{"generators", "validators", "summary"}: counts by generator and validator, as the daemon keeps them."""
        empty: Document = {"generators": {}, "validators": {}, "summary": {"worst_offenders": []}}
        return empty | (read_status(self._workspace.status_file("data_lineage.json")) or {})

    def find(self, key: str) -> Document:
        """{"checkpoint" | "file", "files", "checkpoints", "served"}, as `dropforge lineage`. Raises NotFoundError."""
        return lineage(self._workspace, self._run, key)
