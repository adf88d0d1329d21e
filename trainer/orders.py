"""What the daemon wants now (status/orders.json), looked at before each optimizer step (arrow: daemon -> trainer).

Reads    status/orders.json: one stat a look, the file only when it changed
Format   orders.v1: `paused` is a level; stop, skip, checkpoint and rewind act once, when `seq` exceeds the last
         acknowledged one
"""

from dataclasses import dataclass
from typing import Any  # JSON documents

from core.paths import Workspace
from core.status import read_status


@dataclass(frozen=True, slots=True)
class Order:
    """One order, as it stands in the file."""

    seq: int = 0
    command: str = "run"
    paused: bool = False
    release_gpu: bool = False
    id: str | None = None
    job_id: str | None = None
    hold: bool = False  # rewind: later jobs wait for a person instead of being trained again
    careful: bool = False  # the trainer before this one was killed for want of memory


def order_from(document: dict[str, Any]) -> Order:
    """Read an order document; keys it does not know are left aside."""
    return Order(
        seq=int(document["seq"]),
        command=str(document["command"]),
        paused=bool(document.get("paused")),
        release_gpu=bool(document.get("release_gpu")),
        id=document.get("id"),
        job_id=document.get("job_id"),
        hold=bool(document.get("hold")),
        careful=bool(document.get("careful")),
    )


class Orders:
    """The order that stands, and whether it has been acted on."""

    def __init__(self, workspace: Workspace, acknowledged: int) -> None:
        self._path = workspace.status_file("orders.json")
        self._seen: tuple[int, int] | None = None
        self._acknowledged = acknowledged
        self.standing = Order(seq=acknowledged)

    def look(self) -> Order | None:
        """Return an order that has not been acknowledged, else None. Side effects: refreshes `standing`."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return None
        mark = (stat.st_ino, stat.st_mtime_ns)
        if mark != self._seen:
            document = read_status(self._path)
            if document is not None:
                self.standing = order_from(document)
                self._seen = mark
        return self.standing if self.standing.seq > self._acknowledged else None

    def acknowledge(self, order: Order) -> None:
        self._acknowledged = order.seq
