"""Standing still before the disk is full, and going on by itself when there is space again (beside all arrows).

Reads    free bytes and inodes of the root's filesystem          Units  bytes
Errors   none
"""

import os

from core.checkpoints import Checkpoint
from core.daemon.context import Context
from core.daemon.orders import OrderBook

_LOOK_EVERY_S = 1.0
RESERVE_BYTES = 16 * 1024 * 1024  # claims, verdicts, status and logs of a while
COMMIT_FACTOR = 1.5  # times the last commit: the next one is written before any old one goes
_MIN_INODES = 200
_EASE = 1.1  # go on only with a tenth more than needed, so that the state does not flutter


class DiskGuard:
    """Blocks intake and training while space is short."""

    def __init__(self, context: Context, orders: OrderBook) -> None:
        self._context = context
        self._orders = orders
        self._next_s = 0.0
        self._blocked = False

    def tick(self, now: float, head: Checkpoint | None) -> None:
        if now < self._next_s:
            return
        self._next_s = now + _LOOK_EVERY_S
        reason = self._shortage(head)
        blocks = self._context.blocks
        if reason is None:
            blocks.intake.pop("disk", None)
            if self._blocked:
                self._context.events.emit("disk_ok", "there is space again: going on")
        else:
            blocks.intake["disk"] = reason
            if not self._blocked:
                self._context.events.emit("disk_full", reason)
        if self._blocked != (reason is not None):
            self._blocked = reason is not None
            self._orders.by_machine(self._blocked, reason)

    def _shortage(self, head: Checkpoint | None) -> str | None:
        found = os.statvfs(self._context.workspace.root)
        free = found.f_bavail * found.f_frsize
        need = max(RESERVE_BYTES, int(COMMIT_FACTOR * _bytes_of(head)))
        threshold = need * (_EASE if self._blocked else 1.0)
        if free < threshold:
            return f"disk full: need {_mb(need)}, have {_mb(free)} (free space on {self._context.workspace.root})"
        if 0 < found.f_files and found.f_favail < _MIN_INODES:
            return f"disk full: need {_MIN_INODES} free inodes, have {found.f_favail}"
        return None


def _bytes_of(head: Checkpoint | None) -> int:
    if head is None:
        return 0
    listed = [*head.manifest["files"].values(), *head.manifest["training_files"].values()]
    return sum(int(entry["bytes"]) for entry in listed)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
