"""The daemon's judging with fake processes for judge and publisher, and a document for the server."""

import json
from typing import Any

from core.checkpoints import Checkpoint
from core.daemon.catalogue_view import CatalogueView
from core.daemon.children import Children
from core.daemon.deployment import DeploymentPoller, DeploymentView
from core.daemon.judging import Judging
from core.daemon.orders import OrderBook
from core.daemon.outcomes import Outcomes
from core.daemon.supervisor import Supervisor
from core.daemon.training_view import TrainingView
from core.job_queue import Job, new_verdict
from core.paths import Workspace
from daemon_rig import FakeSpawn, make_context

JOB = "20260101T00000000000{}Z-abcdef"


class Rig:
    """The judge and the publisher are fake processes; the server is a document."""

    def __init__(self, workspace: Workspace, clock: Any, **config: Any) -> None:
        self.workspace, self.clock = workspace, clock
        self.context = make_context(workspace, **config)
        self.server: dict[str, Any] | None = {"serving": None, "previous": None, "checkpoints": []}
        self.restart()

    def restart(self) -> None:
        self.spawn = FakeSpawn()
        self.poller = DeploymentPoller("http://x", lambda: None)
        self.poller.take = self._poll  # type: ignore[method-assign]
        self.children = Children(self.workspace, (), Supervisor(start=self.spawn))
        self.view = CatalogueView(self.workspace, "main")
        self.deployment = DeploymentView(self.context, self.poller)
        self.orders = OrderBook(self.workspace, TrainingView(self.workspace))
        self.judging = Judging(self.context, self.children, self.view, self.deployment, self.orders, grace_s=10.0)
        self.outcomes = Outcomes(self.context, self.view, self.deployment, self.judging)

    def _poll(self) -> tuple[dict[str, Any] | None, str | None]:
        return (dict(self.server), None) if self.server is not None else (None, "refused")

    def tick(self, seconds: float = 0.1, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(seconds)
            self.view.refresh()
            self.children.supervisor.tick(self.clock())
            self.deployment.tick()
            self.judging.tick(self.clock())
            self.outcomes.tick(self.clock())

    def running(self) -> tuple[str, ...] | None:
        """The arguments of the errand on its way, without interpreter, module and root."""
        alive = [p for p in self.spawn.processes if p.code is None]
        return alive[-1].spec.argv[5:] if alive else None

    def finish(self, code: int = 0) -> None:
        self.spawn.processes[-1].code = code
        self.tick()

    def judge_says(self, checkpoint: Checkpoint, decision: str, **more: Any) -> None:
        folder = self.workspace.evaluation_dir("main", checkpoint.id)
        folder.mkdir(parents=True, exist_ok=True)
        promote = decision in ("promote", "no_baseline")
        doc = {"id": checkpoint.id, "decision": decision, "promote": promote, "p_value": 0.01, "reason": "said", **more}
        (folder / "metrics.json").write_text(json.dumps(doc))

    def publish_says(self, checkpoint: Checkpoint, ok: bool) -> None:
        folder = self.workspace.evaluation_dir("main", checkpoint.id)
        folder.mkdir(parents=True, exist_ok=True)
        error = None if ok else {"error": "gate_failed"}
        (folder / "deploy.json").write_text(json.dumps({"ok": ok, "error": error}))

    def serve(self, checkpoint: Checkpoint, previous: Checkpoint | None = None) -> None:
        self.server = {"serving": checkpoint.id, "previous": previous.id if previous else None, "checkpoints": []}

    def done_job(self, number: int) -> Job:
        job_id = JOB.format(number)
        folder = self.workspace.lane("done") / job_id
        folder.mkdir()
        job = Job(job_id, "done", folder)
        job.write_verdict(new_verdict(job_id=job_id, state="done"))
        return job

    def events(self) -> list[dict[str, Any]]:
        lines = self.workspace.status_file("events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
