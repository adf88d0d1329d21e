"""Which generator made what, and how much of it was refused (arrow: intake -> status/data_lineage.json).

Reads    the sidecar of each job folder        Writes  status/data_lineage.json
Errors   none: a sidecar that cannot be read counts for the generator `unknown`
"""

from collections.abc import Iterable, Mapping
from typing import Any  # verdicts are JSON

from core.errors import DropforgeError
from core.job_queue import SIDECAR_SUFFIX
from core.lineage import Sidecar, read_sidecar
from core.lineage_tracker import LineageTracker
from core.paths import Workspace
from core.status import write_status
from core.verdicts import folder_of


class LineageView:
    """The totals of one root, added up again from the folders at each start of the daemon."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._tracker = LineageTracker()

    def add(self, verdicts: Iterable[Mapping[str, Any]]) -> None:
        """Count these files and write the document. A job that is added again replaces what it said before."""
        verdicts = list(verdicts)
        for verdict in verdicts:
            self._tracker.add(verdict, self._generator(str(verdict["job_id"])))
        path = self._workspace.status_file("data_lineage.json")
        if verdicts or not path.exists():
            write_status(path, self._tracker.as_dict())

    def _generator(self, job_id: str) -> str:
        try:
            sidecars = sorted(folder_of(self._workspace, job_id).glob(f"*{SIDECAR_SUFFIX}"))
            return read_sidecar(sidecars[0]).generator if sidecars else Sidecar().generator
        except (DropforgeError, OSError):
            return "unknown@0"
