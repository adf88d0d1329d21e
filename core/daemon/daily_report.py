"""Once a day, at `report.at` by the local clock, a report is made and sent (beside all arrows).

Starts   `python -m monitoring.reports --send`, through the supervisor
Units    local time for the schedule, a monotonic clock for the child
Errors   none: a report that fails is repeated with back-off by the supervisor, then named in the events
"""

import datetime
from collections.abc import Callable

from core.daemon.children import Children
from core.daemon.context import Context

_CHILD = "reports"


def _local_now() -> datetime.datetime:
    return datetime.datetime.now()


class DailyReport:
    """Watches the clock. A day whose hour passed while no daemon ran is not made up for."""

    def __init__(
        self, context: Context, children: Children, local_now: Callable[[], datetime.datetime] = _local_now
    ) -> None:
        self._context = context
        self._children = children
        self._local_now = local_now
        self._seen = local_now()
        self._under_way = False

    def tick(self, now: float) -> None:
        """Start the report when its minute has come since the last look. Side effects: one child process a day."""
        before, self._seen = self._seen, self._local_now()
        if self._under_way:
            self._watch()
        at = self._context.settings.report.at
        if at is None or self._under_way:
            return
        hour, minute = map(int, at.split(":"))
        due = self._seen.replace(hour=hour, minute=minute, second=0, microsecond=0)
        if before < due <= self._seen:
            self._children.run(_CHILD, self._children.python("monitoring.reports", "--send"), now)
            self._under_way = True

    def stop(self, now: float) -> None:
        self._children.stop(_CHILD, now)

    def _watch(self) -> None:
        child = self._children[_CHILD]
        if not child.at_rest:
            return
        self._under_way = False
        code = child.last_exit.returncode if child.last_exit is not None else 1
        if code == 0:
            self._context.events.emit("report", "the daily report is in status/reports/")
        else:
            reason = child.reason or f"exit code {code}"
            self._context.events.emit("report_failed", f"the daily report failed: {reason}")
