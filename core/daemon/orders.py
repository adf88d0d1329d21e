"""Orders from the daemon to the trainer, one at a time, and their acknowledgements (beside: queue -> trainer).

Reads    status/orders.json at the start          Writes  status/orders.json {seq, command, paused, ...}
Errors   StorageError when the file cannot be written: the order stays queued and is written at a later tick
Effects  fsyncs: an order that was given survives a crash of the daemon
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any  # orders are JSON documents

from core.atomic import write_json
from core.daemon.training_view import TrainingView
from core.paths import Workspace
from core.status import read_status

_KEPT_OVER_A_START = ("skip", "rewind")
_FIELDS = ("id", "job_id", "reason")


@dataclass(slots=True)
class Order:
    """One order. `ack` is set when it has been carried out, `note` when it was settled without the trainer."""

    command: str
    fields: dict[str, Any] = field(default_factory=dict)
    seq: int | None = None
    ack: dict[str, Any] | None = None
    note: str = ""

    @property
    def done(self) -> bool:
        return self.ack is not None


class OrderBook:
    """`paused` is a level, carried by every order; the commands are one-shots, each waiting for the one before it."""

    def __init__(self, workspace: Workspace, view: TrainingView) -> None:
        self._path = workspace.status_file("orders.json")
        self._view = view
        doc = read_status(self._path) or {}
        seq = doc.get("seq")
        self._seq = max(seq if isinstance(seq, int) else 0, view.acked_seq)
        self._current: Order | None = None
        if doc.get("command") in _KEPT_OVER_A_START and self._seq > view.acked_seq:
            kept = {key: doc.get(key) for key in (*_FIELDS, "hold")}
            self._current = Order(doc["command"], kept, self._seq)
        self._waiting: deque[Order] = deque()
        self._hand = False
        self._machine = False
        self._release_gpu = False
        self._why_hand: str | None = None
        self._why_machine: str | None = None
        self._level: tuple[bool, bool] | None = None

    @property
    def idle(self) -> bool:
        """True when nothing is unacknowledged."""
        return not self._waiting and (self._current is None or self._current.done)

    @property
    def current(self) -> Order | None:
        return self._current

    def ask(self, command: str, **fields: Any) -> Order:  # JSON values
        """Queue a one-shot."""
        order = Order(command, fields)
        self._waiting.append(order)
        return order

    @property
    def paused(self) -> bool:
        return self._hand or self._machine

    @property
    def paused_by_hand(self) -> bool:
        return self._hand

    @property
    def paused_why(self) -> str | None:
        """The reason given with the pause, when there was one: a person's before the daemon's own."""
        return (self._why_hand if self._hand else None) or (self._why_machine if self._machine else None)

    def by_hand(self, paused: bool, *, release_gpu: bool = False, reason: str | None = None) -> Order | None:
        """A person pauses or resumes. Returns the order that will be acknowledged, None when nothing changes."""
        self._hand, self._release_gpu, self._why_hand = paused, release_gpu, reason
        return self._new_level(reason)

    def by_machine(self, paused: bool, reason: str | None = None) -> None:
        """The daemon itself holds training back (no space on the disk) or lets it go on."""
        self._machine, self._why_machine = paused, reason
        self._new_level(reason)

    def _new_level(self, reason: str | None) -> Order | None:
        level = (self.paused, self._release_gpu)
        if level == (self._level or (False, False)):
            return None
        self._level = level
        if self._current is not None and not self._current.done:
            self._write(self._current)  # same seq, new level: a pause does not wait behind a checkpoint
        return self.ask("pause" if self.paused else "run", reason=reason)

    def before_trainer_start(self, *, careful: bool = False) -> None:
        """Write the level as a fresh order, so that an old one-shot is not acted on again by a new trainer.

        Args:
            careful: the one before was killed for want of memory: this one takes the smallest micro-batches.
        """
        current = self._current
        if current is not None and not current.done and current.command in _KEPT_OVER_A_START:
            self._write(current)
            return
        if current is not None and not current.done and current.seq is not None:
            current.ack = {"seq": current.seq, "step": None, "checkpoint": None}
            current.note = "the trainer ended before it"
        self._give(Order("pause" if self.paused else "run", {"careful": True} if careful else {}))

    def settle_without_trainer(self, checkpoint: str | None, step: int | None) -> None:
        """No trainer lives: everything but skip and rewind is as good as done."""
        ack = {"seq": None, "step": step, "checkpoint": checkpoint}
        pending = [self._current] if self._current is not None and not self._current.done else []
        for order in [*pending, *self._waiting]:
            if order.command not in _KEPT_OVER_A_START:
                order.ack, order.note = ack, "no trainer was running"
        self._waiting = deque(order for order in self._waiting if not order.done)

    def tick(self) -> None:
        """Take the trainer's acknowledgement; give the next order when the last one is done."""
        self._view.refresh()
        current = self._current
        if current is not None and not current.done and self._view.acked_seq >= (current.seq or 0) > 0:
            current.ack = dict(self._view.ack)
        while self._waiting and (self._current is None or self._current.done):
            self._give(self._waiting[0])
            self._waiting.popleft()

    def _give(self, order: Order) -> None:
        seq = self._seq + 1
        self._write(order, seq)
        self._seq = order.seq = seq
        self._current = order

    def _write(self, order: Order, seq: int | None = None) -> None:
        named = {key: order.fields.get(key) for key in _FIELDS}
        named |= {key: True for key in ("hold", "careful") if order.fields.get(key)}
        doc = {
            "seq": seq if seq is not None else order.seq,
            "command": order.command,
            "paused": self.paused,
            "release_gpu": self._release_gpu,
            **named,
        }
        write_json(self._path, doc)
