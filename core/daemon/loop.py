"""The daemon as one object with `tick(now)`, and the short driver that owns the `while` (all arrows meet here).

Units    seconds by a monotonic clock
Errors   a part that raises is logged and has its next turn a tick later: one broken part never stops the others
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any  # status documents are JSON

from core.control import ControlFile
from core.daemon.audits import Audits
from core.daemon.catalogue_view import CatalogueView
from core.daemon.children import Children
from core.daemon.context import Context
from core.daemon.control_files import Control
from core.daemon.daily_report import DailyReport
from core.daemon.deployment import DeploymentView
from core.daemon.disk_guard import DiskGuard
from core.daemon.file_watcher import FileWatcher
from core.daemon.heartbeat import Heartbeat
from core.daemon.inbox_guard import InboxGuard
from core.daemon.intake import Intake
from core.daemon.judging import Judging
from core.daemon.ledger_feed import LedgerFeed
from core.daemon.orders import OrderBook
from core.daemon.outcomes import Outcomes
from core.daemon.progress_events import ProgressEvents
from core.daemon.signals import Signals
from core.daemon.snapshot_service import SnapshotService
from core.daemon.trainer_keeper import TrainerKeeper
from core.daemon.training_view import TrainingView
from core.errors import DropforgeError

logger = logging.getLogger(__name__)

TICK_S = 0.1
_RESTING_S = 0.5
_BREATH_S = 0.005
_HOPELESS_S = 5.0
_IDLE_FOR_S = 1.0  # how long everything must rest before --exit-when-idle believes it


@dataclass(slots=True)
class Parts:
    """Everything that has a turn, built in __main__. Without `trainer`, the daemon only takes files in."""

    context: Context
    signals: Signals
    watcher: FileWatcher
    inbox_guard: InboxGuard
    intake: Intake
    control: Control
    orders: OrderBook
    training: TrainingView
    view: CatalogueView
    deployment: DeploymentView
    children: Children
    trainer: TrainerKeeper | None
    judging: Judging
    outcomes: Outcomes
    snapshots: SnapshotService
    disk: DiskGuard
    ledger: LedgerFeed
    progress: ProgressEvents
    heartbeat: Heartbeat
    audits: Audits


class Daemon:
    """One turn of everything, in the order of the arrows."""

    def __init__(self, parts: Parts, *, exit_when_idle: bool = False) -> None:
        self._parts = parts
        self._daily_report = DailyReport(parts.context, parts.children)
        self._exit_when_idle = exit_when_idle
        self._stopping: str | None = None
        self._idle_since_s: float | None = None
        self._hopeless_since_s: float | None = None
        self.gave_up: str | None = None
        self.ended = False

    def tick(self, now: float) -> None:
        """Let every part act once; afterwards `ended` says whether the daemon is done."""
        p = self._parts
        self._turn("signals", lambda: self._act_on_signals(now))
        self._turn("configuration", lambda: self._watch_configuration(now))
        self._turn("catalogue", p.view.refresh)
        self._turn("disk", lambda: p.disk.tick(now, p.view.head))
        self._turn("control", lambda: p.control.tick(now))
        self._turn("intake", lambda: self._take_in(now))
        self._turn("children", lambda: self._supervise(now))
        self._turn("orders", p.orders.tick)
        self._turn("deployment", p.deployment.tick)
        if p.trainer is not None and self._stopping is None:
            self._turn("judge", lambda: p.judging.tick(now))
            self._turn("outcomes", lambda: p.outcomes.tick(now))
            self._turn("retention", lambda: p.snapshots.tick(now))
        if self._stopping is None:
            self._turn("report", lambda: self._daily_report.tick(now))
            self._turn("audits", lambda: p.audits.tick(now))
        self._turn("progress", p.progress.tick)
        self._turn("heartbeat", lambda: p.heartbeat.tick(now, self.facts()))
        self._turn("ledger", lambda: p.ledger.tick(now))  # last: its first turn loads SQLAlchemy
        self._turn("end", lambda: self._maybe_end(now))

    def _turn(self, part: str, act: Callable[[], object]) -> None:
        try:
            act()
        except (DropforgeError, OSError) as error:
            logger.error("%s: %s", part, error)
        except Exception:  # the loop's edge: one broken part must not stop the others
            logger.exception("%s failed", part)

    # --- turns ----------------------------------------------------------------------------------------------------

    def _act_on_signals(self, now: float) -> None:
        signals = self._parts.signals
        if signals.take_checkpoint():
            self._parts.control.ask_checkpoint(ControlFile("SIGUSR1", "checkpoint"))
        if signals.ends >= 2:
            logger.warning("asked twice to stop: ending now")
            self._parts.children.supervisor.kill_all()
            self.ended = True
        elif signals.ends == 1 and self._stopping is None:
            self._stop("signal", now)

    def _watch_configuration(self, now: float) -> None:
        p = self._parts
        force = p.signals.take_reload()
        if p.context.config.tick(now, p.context.events, force=force) or force:
            name_unbuilt(p.context)
            p.judging.config_changed()
            if p.trainer is not None:
                p.trainer.config_changed()

    def _take_in(self, now: float) -> None:
        p = self._parts
        usable = p.inbox_guard.tick(now)
        armed = usable and p.watcher.ensure()
        if p.watcher.take_seen() or armed:
            p.intake.wake()
        p.intake.tick(now, watching=p.watcher.watching, taking=usable and self._stopping is None)
        if p.control.stop_asked is not None and self._stopping is None:
            self._stop(p.control.stop_asked, now)

    def _supervise(self, now: float) -> None:
        p = self._parts
        for ended in p.children.supervisor.tick(now):
            if ended.name == "trainer" and p.trainer is not None:
                p.trainer.on_exit(ended)
        if p.trainer is not None:
            p.trainer.tick(now)

    def _stop(self, reason: str, now: float) -> None:
        self._stopping = reason
        self._parts.context.events.emit("stopping", f"stopping: {reason}")
        self._parts.judging.stop(now)
        self._daily_report.stop(now)
        self._parts.audits.stop(now)
        if self._parts.trainer is not None:
            self._parts.trainer.ask_stop(now)

    def _maybe_end(self, now: float) -> None:
        p = self._parts
        if self._stopping is not None:
            if p.children.supervisor.at_rest:
                head = p.view.head
                p.control.note_stopped(*((head.step, head.id) if head is not None else (None, None)))
                self.ended = True
            return
        if not self._exit_when_idle:
            return
        self._give_up_when_hopeless(now)
        if not self.idle(now):
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = now
        elif now - self._idle_since_s >= _IDLE_FOR_S:
            self._stop("idle", now)

    def _give_up_when_hopeless(self, now: float) -> None:
        """Who asked for an end when idle would wait for ever for a trainer that only a person can mend."""
        p = self._parts
        blocks = p.context.blocks.training
        reason = blocks.get("config") or (
            blocks.get("trainer") if p.trainer is not None and p.trainer.given_up else None
        )
        if reason is None or not p.intake.idle or not p.context.queue.waiting():
            self._hopeless_since_s = None
        elif self._hopeless_since_s is None:
            self._hopeless_since_s = now
        elif now - self._hopeless_since_s >= _HOPELESS_S:
            self.gave_up = reason
            self._stop(f"given up: {reason}", now)

    # --- what is going on -----------------------------------------------------------------------------------------

    def idle(self, now: float) -> bool:
        """No candidate, nothing waiting or active, judge and publisher at rest (contract section 1)."""
        p = self._parts
        if not p.intake.idle or p.context.blocks.intake:
            return False
        if p.trainer is None:
            return True
        queue = p.context.queue
        if queue.active() is not None or any(queue.count(lane) for lane in ("high", "normal", "low")):
            return False
        based = p.view.base is not None or bool(p.context.blocks.training)
        return based and p.orders.idle and p.judging.at_rest(now)

    def facts(self) -> dict[str, Any]:
        """What status/daemon.json says beside the fixed facts."""
        p = self._parts
        active = p.context.queue.active()
        state, reason = self._state(active is not None)
        ignored = [*p.intake.ignored, *p.inbox_guard.control_entries(p.control.ignored)]
        return {
            "state": state,
            "reason": reason,
            "current_job": active.job_id if active is not None else None,
            "step": p.training.step,
            "ignored": ignored,
            "children": p.children.supervisor.report(),
            "inbox": {
                "candidates": p.intake.candidates,
                "claims": p.intake.open_claims,
                "waiting": p.intake.waiting,
            },
            "serving": p.deployment.serving,
            "judging": p.judging.under_judgement,
        }

    def _state(self, active: bool) -> tuple[str, str | None]:
        p = self._parts
        if self.ended:
            return "stopped", self._stopping
        if self._stopping is not None:
            return "stopping", self._stopping
        blocked = p.context.blocks.first
        if blocked is not None:
            return "blocked", blocked
        if p.orders.paused:
            return "paused", p.orders.paused_why
        if p.trainer is not None and p.view.base is None:
            return "starting", "the trainer imports the base model"
        return ("training", None) if active else ("idle", None)

    def wait_s(self, now: float) -> float:
        """How long the driver may sleep when nothing wakes it: no longer than until a file has settled."""
        p = self._parts
        busy = p.intake.open_claims or p.judging.under_judgement or p.progress.active or self._stopping is not None
        return max(_BREATH_S, min(TICK_S if busy else _RESTING_S, p.intake.next_due_s - now))

    def close(self) -> None:
        """The last words, after `ended`."""
        p = self._parts
        p.context.events.emit("stopped", f"the daemon ends: {self._stopping or 'now'}")
        self._turn("progress", p.progress.tick)
        self._turn("ledger", lambda: p.ledger.tick(float("inf")))
        p.ledger.close()
        p.watcher.stop()
        p.heartbeat.write(self.facts())


def run(daemon: Daemon, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
    """Drive a daemon until it has ended."""
    while not daemon.ended:
        daemon.tick(clock())
        if not daemon.ended:
            context.wakeup.wait(daemon.wait_s(clock()))
    daemon.close()


def name_unbuilt(context: Context) -> None:
    """Keep the trainer from training with another template or without the data that the configuration asks for."""
    settings, blocks = context.settings, context.blocks.training
    if settings.profile.name is not None:
        blocks["config"] = f"profile {settings.profile.name!r} is not built yet: set profile.name to null"
    elif settings.auto_generate.enabled:
        blocks["config"] = "auto_generate is not built yet: set auto_generate.enabled to false to train dropped files"
    else:
        blocks.pop("config", None)
