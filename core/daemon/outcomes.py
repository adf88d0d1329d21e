"""What training came to, written into the verdicts of ended jobs: the judge's effect, and whether it is served
(arrow: judge -> publisher, seen back).

Reads    evaluations/<id>/metrics.json, the manifests, what the server serves
Writes   queue/done/<job_id>/verdict.json: `effect`, `served`; finishes final verdicts found in a wrong lane
Errors   none: what cannot be written is tried again at the next change
"""

import logging
from collections.abc import Callable
from typing import Any  # metrics are JSON

from core.daemon.catalogue_view import CatalogueView
from core.daemon.context import Context
from core.daemon.deployment import DeploymentView
from core.daemon.judging import Judging
from core.daemon.request_actions import mark_cancelled
from core.errors import DropforgeError, NotFoundError
from core.job_queue import Job, JobQueue
from core.paths import ENDED_LANES, LANES

logger = logging.getLogger(__name__)

_AGAIN_S = 2.0
_LOOK_BACK = 20  # commits whose effect may have been missed by a crash


def finish_moves(queue: JobQueue) -> list[str]:
    """At the start, before a trainer runs: an ended verdict found elsewhere goes to its lane.

    Returns the ids moved. Raises StorageError.
    """
    moved = []
    for lane in (lane for lane in LANES if lane not in ENDED_LANES):
        for job in queue.jobs(lane):
            state = _state(job)
            if state in ENDED_LANES:
                queue.move(job, state)
                moved.append(job.job_id)
    for job in queue.jobs("failed"):
        if _state(job) == "queued":  # a cancel that was interrupted between its move and its verdict
            mark_cancelled(job)
            moved.append(job.job_id)
    return moved


def _state(job: Job) -> str | None:
    try:
        return str(job.verdict()["state"])
    except (DropforgeError, KeyError):
        return None


class Outcomes:
    """Merges what came after the end of a job into its verdict."""

    def __init__(
        self,
        context: Context,
        view: CatalogueView,
        deployment: DeploymentView,
        judging: Judging,
        changed: Callable[[str], None] = lambda _job_id: None,
    ) -> None:
        """`changed` is told the id of each job whose verdict was rewritten in place."""
        self._context = context
        self._view = view
        self._deployment = deployment
        self._judging = judging
        self._changed = changed
        self._looked_back = False
        self._serving: str | None = None
        self._served: set[str] | None = None
        self._next_s = 0.0

    def tick(self, now: float) -> None:
        """Merge what is new. What could not be written is tried again, but not at every tick."""
        if not self._looked_back and self._view.committed:
            self._looked_back = True
            for checkpoint in self._view.job_ends[-_LOOK_BACK:]:
                self._merge_effect(checkpoint.id)
        while self._judging.judged:
            self._merge_effect(self._judging.judged.pop(0))
        serving = self._deployment.serving
        if (self._served is None or serving != self._serving) and now >= self._next_s:
            self._next_s = now + _AGAIN_S
            self._mark_served(serving)

    def _merge_effect(self, checkpoint_id: str) -> None:
        """The effect a file had is against what served when it was judged: a later look by hand does not change it."""
        checkpoint = self._view.find(checkpoint_id)
        effect = self._judging.metrics(checkpoint_id).get("effect")
        if checkpoint is not None and checkpoint.ends_job and isinstance(effect, dict) and effect:
            self._update(checkpoint.manifest["jobs"][-1]["job_id"], {"effect": effect}, once=True)

    def _mark_served(self, serving: str | None) -> None:
        try:
            chain = self._view.catalogue.chain(serving) if serving is not None else []
        except (NotFoundError, DropforgeError):
            return  # another run's, or the chain is being changed: look again at the next poll
        now = {entry["job_id"] for manifest in chain for entry in manifest["jobs"]}
        before = self._served if self._served is not None else self._marked()
        complete = all([self._update(job_id, {"served": True}) for job_id in sorted(now - before)])
        complete &= all([self._update(job_id, {"served": False}) for job_id in sorted(before - now)])
        if complete:
            self._serving, self._served = serving, now

    def _marked(self) -> set[str]:
        """The jobs whose verdict says served, as an earlier daemon left them."""
        return {job.job_id for job in self._context.queue.jobs("done") if _says_served(job)}

    def _update(self, job_id: str, facts: dict[str, Any], *, once: bool = False) -> bool:
        """Change a verdict of an ended job; `once`: only what is still empty. Returns False when to be tried again."""
        try:
            job = self._context.queue.find(job_id)
            if job.lane != "done":
                return job.lane not in ("active", *LANES[:3])
            verdict = job.verdict()
            new = {key: value for key, value in facts.items() if verdict.get(key) != value}
            new = {key: value for key, value in new.items() if not (once and verdict.get(key))}
            if new:
                job.write_verdict(verdict | new)
                self._changed(job_id)
        except NotFoundError:
            return True
        except DropforgeError as error:
            logger.warning("the verdict of %s was not updated: %s", job_id, error)
            return False
        return True


def _says_served(job: Job) -> bool:
    try:
        return job.verdict().get("served") is True
    except DropforgeError:
        return False
