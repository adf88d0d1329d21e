"""After a commit: judge it, publish what is better, one errand at a time (arrow: checkpoints -> judge -> publisher).

Reads    evaluations/<id>/metrics.json and deploy.json, what the server says it serves
Starts   `python -m trainer.evaluate`, `python -m inference.publish`, through the supervisor, never both at once
Errors   none: an errand that fails is repeated with back-off, then given up, named in events and status
"""

import glob
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any  # metrics and deploy documents are JSON

from core.checkpoints import Checkpoint
from core.daemon.catalogue_view import CatalogueView
from core.daemon.children import Children
from core.daemon.context import Context
from core.daemon.deployment import DeploymentView
from core.daemon.orders import OrderBook
from core.daemon.supervisor import State
from core.status import read_status

logger = logging.getLogger(__name__)

GATE_FAILED = 5
_DEFER_S = 300.0


@dataclass(slots=True)
class Errand:
    """One run of the judge or the publisher. `ack` is set when it has ended: also the answer to a request."""

    kind: str  # judge | evaluate | publish | rollback | refresh
    child: str
    argv: tuple[str, ...]
    checkpoint: str | None = None
    by_hand: bool = False
    ack: dict[str, Any] | None = None
    note: str = ""
    instead_of: str | None = None  # publish: what serves and was taken back
    given_way: bool = False  # stopped, so that what people asked of the server goes first


class Judging:
    """Decides what to run next from what lies on the disk, so that a restart simply goes on."""

    def __init__(
        self,
        context: Context,
        children: Children,
        view: CatalogueView,
        deployment: DeploymentView,
        orders: OrderBook,
        *,
        grace_s: float,
    ) -> None:
        self._context = context
        self._children = children
        self._view = view
        self._deployment = deployment
        self._orders = orders
        self._grace_s = grace_s
        self._began_s: float | None = None
        self._asked: deque[Errand] = deque()
        self._now: Errand | None = None
        self._promote: dict[str, bool] = {}
        self._sent: tuple[str | None, int] | None = None
        self._given_up: set[str] = set()
        self._refused: set[str] = set()
        self._replaced: set[str] = set()
        self._deferred_until_s = 0.0
        self._was_ok = False
        self._heard = False  # the server has answered this daemon at least once
        self._refresh = False
        self._taken_back: set[str] = set()
        self.judged: list[str] = []

    # --- asked by people ------------------------------------------------------------------------------------------

    def ask_publish(self, checkpoint_id: str) -> Errand:
        return self._ask(self._publish(checkpoint_id, by_hand=True))

    def ask_rollback(self) -> Errand:
        argv = self._children.python("inference.publish", "--rollback")
        return self._ask(Errand("rollback", "publisher", argv, by_hand=True))

    def ask_evaluation(self, checkpoint_id: str, suite: str | None) -> Errand:
        more = ("--suite", suite) if suite else ()
        argv = self._children.python("trainer.evaluate", "--candidate", checkpoint_id, *self._serving_option(), *more)
        return self._ask(Errand("evaluate", "judge", argv, checkpoint_id, by_hand=True))

    def _ask(self, errand: Errand) -> Errand:
        self._asked.append(errand)
        return errand

    def config_changed(self) -> None:
        """Another configuration holds: what could not be judged is tried again."""
        self._given_up.clear()

    # --- one turn -------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        self._began_s = now if self._began_s is None else self._began_s
        if self._deployment.ok and not self._was_ok:
            self._deferred_until_s = 0.0  # it is back: what was put off is tried again
        self._was_ok = self._deployment.ok
        self._heard = self._heard or self._deployment.ok
        if self._now is not None:
            self._maybe_give_way(self._now, now)
            self._watch(self._now, now)
        self._maybe_take_back()
        if self._now is None:
            errand = self._next(now)
            if errand is not None:
                self._now = errand
                self._children.run(errand.child, errand.argv, now)

    @property
    def under_judgement(self) -> str | None:
        """The checkpoint that the judge or the publisher has in hand."""
        return self._now.checkpoint if self._now is not None else None

    def wanted(self) -> set[str]:
        """Checkpoints that retention must leave alone: in hand, or waiting to be judged or published."""
        due = [self._to_judge(), self._to_publish(None), self._view.find(self.under_judgement)]
        asked = {errand.checkpoint for errand in self._asked if errand.checkpoint}
        return asked | {checkpoint.id for checkpoint in due if checkpoint is not None}

    def at_rest(self, now: float) -> bool:
        """Nothing runs, nothing is due; a server that does not answer is waited for during the grace only."""
        waiting_for_server = not self._deployment.ok and now - (self._began_s or now) < self._grace_s
        asked = any(not self._held(errand) or waiting_for_server for errand in self._asked)
        if self._now is not None or asked or self._refresh or self._settling() or self._to_judge() is not None:
            return False
        if self._to_publish(None) is None and self._deployment.serving is not None:
            return True
        if self._view.base is None:
            return True
        return not waiting_for_server and self._to_publish(now) is None

    def stop(self, now: float) -> None:
        for errand in self._asked:
            reason = "the daemon ended before it: ask again"
            errand.ack = {"step": None, "checkpoint": errand.checkpoint, "error": reason}
        self._asked.clear()
        for name in ("judge", "publisher"):
            self._children.stop(name, now)

    def _next(self, now: float) -> Errand | None:
        for errand in self._asked:
            if not self._held(errand):
                self._asked.remove(errand)
                return errand
        if self._settling():
            return None
        if self._refresh:
            self._refresh = False
            argv = self._children.python("trainer.evaluate", "--refresh", *self._serving_option())
            return Errand("refresh", "judge", argv)
        publish = self._to_publish(now)
        if publish is not None:
            errand = self._publish(publish.id)
            errand.instead_of = self._deployment.serving if self._serves_undone() else None
            return errand
        return self._judge(now)

    def _maybe_give_way(self, errand: Errand, now: float) -> None:
        """A judgement takes minutes with a large model: a promotion or rollback asked for by hand does not wait for it.

        What the judge has scored is kept. It begins again afterwards, against what then serves.
        """
        asked = any(one.kind in ("publish", "rollback") and not self._held(one) for one in self._asked)
        if asked and errand.child == "judge" and errand.kind != "refresh" and not errand.given_way:
            errand.given_way = True
            self._children.stop(errand.child, now)

    def _held(self, errand: Errand) -> bool:
        """What needs the server waits until it has answered once: at a start it may still load its model."""
        return errand.kind in ("publish", "rollback") and not self._heard

    def _settling(self) -> bool:
        """Something was just published and the server has not been heard since (the poll on the way may be older)."""
        if self._sent is not None:
            checkpoint_id, polls = self._sent
            if self._deployment.polls >= polls + 2 or (checkpoint_id and checkpoint_id == self._deployment.serving):
                self._sent = None
        return self._sent is not None

    def _publish(self, checkpoint_id: str, *, by_hand: bool = False) -> Errand:
        argv = self._children.python("inference.publish", checkpoint_id)
        return Errand("publish", "publisher", argv, checkpoint_id, by_hand)

    def _judge(self, now: float) -> Errand | None:
        candidate = self._to_judge()
        if candidate is None or not self._baseline_known(now):
            return None
        options = [*self._serving_option()]
        for older in self._superseded(candidate):
            options += ["--superseded", older.id]
        argv = self._children.python("trainer.evaluate", "--candidate", candidate.id, *options)
        return Errand("judge", "judge", argv, candidate.id)

    def _serving_option(self) -> tuple[str, ...]:
        serving = self._deployment.serving
        return ("--serving", serving) if serving is not None else ()

    def _baseline_known(self, now: float) -> bool:
        """Judge against what serves; without a server only after the grace."""
        over = now - (self._began_s or now) >= self._grace_s
        return self._deployment.serving is not None or over or now < self._deferred_until_s

    # --- what is due, read from the disk --------------------------------------------------------------------------

    def _to_judge(self) -> Checkpoint | None:
        """The newest job-end commit, unless it is decided or already serves."""
        ends = self._view.job_ends
        if not ends or ends[-1].id == self._deployment.serving or self._is_decided(ends[-1].id):
            return None
        return ends[-1]

    def _superseded(self, newest: Checkpoint) -> list[Checkpoint]:
        older = []
        for checkpoint in reversed([c for c in self._view.job_ends if c.id != newest.id]):
            if self._is_decided(checkpoint.id) or checkpoint.id == self._deployment.serving:
                break
            older.append(checkpoint)
        return older[::-1]

    def _is_decided(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._given_up or self._promotes(checkpoint_id) is not None

    def _promotes(self, checkpoint_id: str) -> bool | None:
        """The judge's word on a checkpoint, None when it has not spoken."""
        if checkpoint_id not in self._promote:
            found = self.metrics(checkpoint_id)
            if "decision" not in found:
                return None
            self._promote[checkpoint_id] = found.get("promote") is True
        return self._promote[checkpoint_id]

    def metrics(self, checkpoint_id: str) -> dict[str, Any]:
        """What the judge wrote of a checkpoint, or {}."""
        folder = self._context.workspace.evaluation_dir(self._context.run, checkpoint_id)
        return read_status(folder / "metrics.json") or {}

    def _deployed_before(self, checkpoint_id: str) -> str | None:
        """`served` once, or `refused` by its gate: going back to it is for a person. A network error is neither."""
        folder = self._context.workspace.evaluation_dir(self._context.run, checkpoint_id)
        deploy = read_status(folder / "deploy.json") or {}
        error = deploy.get("error")
        refused = isinstance(error, dict) and error.get("error") == "gate_failed"
        if refused or deploy.get("gate_failed") is True or checkpoint_id in self._refused:
            return "refused"
        return "served" if deploy.get("ok") is True else None

    def _to_publish(self, now: float | None) -> Checkpoint | None:
        """What should serve and does not. With `now`, only when it can be tried at this moment."""
        if now is not None and (not self._deployment.ok or now < self._deferred_until_s):
            return None
        undone = self._serves_undone()
        for checkpoint in reversed(self._view.job_ends):
            if checkpoint.id == self._deployment.serving:
                return None
            if self._promotes(checkpoint.id):
                before = self._deployed_before(checkpoint.id)
                if before is None or (before == "served" and (undone or checkpoint.id in self._replaced)):
                    return checkpoint
                if not undone:
                    return self._first(now)
        return self._view.base if undone else self._first(now)

    def _serves_undone(self) -> bool:
        """What serves was taken back by a rewind, and nothing is left that could make it again.

        Jobs that a rewind queues again come to the same weights and the same id, unless they are cancelled first. Once
        replaced, it serves again only when a person rolls back to it, which is left alone.
        """
        serving = self._deployment.serving
        if serving is None or serving in self._replaced or self._view.find(serving) is not None:
            return False
        workspace, queue = self._context.workspace, self._context.queue
        if not any(workspace.undone_dir.glob(f"{self._context.run}-{glob.escape(serving)}-*")):
            return False
        if not self._orders.idle or queue.active() is not None or queue.waiting():
            return False
        self._view.refresh()  # the last job of the queue may have made it a moment ago
        return self._view.find(serving) is None

    def _maybe_take_back(self) -> None:
        """`trainer.on_regress: rewind`: a candidate that is clearly worse goes, and so does what was built on it."""
        if self._context.settings.trainer.on_regress != "rewind" or not self._orders.idle:
            return
        serving = self._view.find(self._deployment.serving)
        chain = self._view.committed
        later = chain[chain.index(serving) + 1 :] if serving in chain else []
        for checkpoint in later:
            if checkpoint.ends_job and checkpoint.id not in self._taken_back and self._regressed(checkpoint.id):
                self._taken_back.add(checkpoint.id)
                text = f"{checkpoint.id} is worse than {self._deployment.serving}, which serves: going back to that"
                self._context.events.emit("regressed", text, checkpoint=checkpoint.id, serving=self._deployment.serving)
                self._orders.ask("rewind", id=self._deployment.serving, hold=True, reason="trainer.on_regress")
                return

    def _regressed(self, checkpoint_id: str) -> bool:
        """The judge kept it back and found it significantly worse (asked only of what it has decided)."""
        if self._promotes(checkpoint_id) is not False:
            return False
        found = self.metrics(checkpoint_id)
        return found.get("decision") == "keep" and found.get("regressed") is True

    def _first(self, now: float | None) -> Checkpoint | None:
        """The base, when the server has nothing at all."""
        empty = self._deployment.reached_empty if now is not None else self._deployment.serving is None
        return self._view.base if empty else None

    # --- the end of an errand -------------------------------------------------------------------------------------

    def _watch(self, errand: Errand, now: float) -> None:
        child = self._children[errand.child]
        if not child.at_rest:
            return
        self._now = None
        code = child.last_exit.returncode if child.last_exit is not None else 1
        if errand.given_way and code != 0:
            errand.given_way = False
            self._asked.extend([errand] if errand.by_hand else [])  # a judgement that is due is found again
            return
        if child.state is State.FATAL and code == 0:
            code = 1
        reason = child.reason or f"exit code {code}"
        errand.ack = {"step": None, "checkpoint": errand.checkpoint, "error": None if code == 0 else reason}
        if errand.kind in ("judge", "evaluate"):
            self._after_judge(errand, code, reason)
        elif errand.kind in ("publish", "rollback"):
            self._after_publish(errand, code, reason, now)

    def _after_judge(self, errand: Errand, code: int, reason: str) -> None:
        checkpoint_id = errand.checkpoint or ""
        self._promote.pop(checkpoint_id, None)
        found = self.metrics(checkpoint_id)
        if code == 0 and "decision" in found:
            self.judged.append(checkpoint_id)
            text = f"{checkpoint_id}: {found['decision']} ({found.get('reason', '')})"
            self._context.events.emit(
                "judged", text, checkpoint=checkpoint_id, decision=found["decision"], p_value=found.get("p_value")
            )
        elif errand.kind == "judge":
            self._given_up.add(checkpoint_id)
            text = f"{checkpoint_id} was not judged: {reason}"
            self._context.events.emit("judge_failed", text, checkpoint=checkpoint_id)

    def _after_publish(self, errand: Errand, code: int, reason: str, now: float) -> None:
        self._deployment.poke()
        what = errand.checkpoint or "the previous checkpoint"
        self._refresh = code in (0, GATE_FAILED)
        if code == 0:
            self._sent = (errand.checkpoint, self._deployment.polls)
            self._replaced.discard(what)
            text = f"{what} is published"
            if errand.instead_of is not None:
                self._replaced.add(errand.instead_of)
                text += f" in place of {errand.instead_of}, which was taken back"
            self._context.events.emit("deployed", text, checkpoint=errand.checkpoint, how=errand.kind)
            return
        self._context.events.emit("deploy_failed", f"{what} was not published: {reason}", checkpoint=errand.checkpoint)
        if code == GATE_FAILED and errand.checkpoint:
            self._refused.add(errand.checkpoint)
        if not errand.by_hand:
            self._deferred_until_s = now + _DEFER_S
