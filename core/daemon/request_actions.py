"""What the request files ask for: cancel, retry, promote, rollback, rewind, pin, evaluate, suite (beside all arrows).

Reads    queue/, checkpoints/<run>/, config/suites/.incoming-<name>/
Writes   the same, by rename; checkpoints/<run>/pins.json; orders to the trainer; commands to judge and publisher
Errors   NotFoundError, UsageError: acknowledged in status/control.json with the fix
"""

import re
from collections.abc import Mapping
from typing import Any  # suites are JSON

from core.atomic import parse_json, read_json, rename_durable, write_json
from core.checkpoints import Catalogue
from core.control import ControlFile
from core.daemon.context import Context
from core.daemon.control_files import Action, Progress, Settled
from core.daemon.intake import Intake
from core.daemon.judging import Judging
from core.daemon.orders import OrderBook
from core.daemon.snapshot_service import pinned, pins_file
from core.errors import JsonError, NotFoundError, UsageError
from core.job_queue import Job, is_job_id
from core.paths import WAITING_LANES
from core.status import iso_now

_SUITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class RequestActions:
    """One method a verb."""

    def __init__(self, context: Context, orders: OrderBook, intake: Intake, judging: Judging) -> None:
        self._context = context
        self._orders = orders
        self._intake = intake
        self._judging = judging

    def table(self) -> Mapping[str, Action]:
        return {
            "cancel": self.cancel,
            "retry": self.retry,
            "promote": self.promote,
            "rollback": self.rollback,
            "rewind": self.rewind,
            "pin": self.pin,
            "evaluate": self.evaluate,
            "suite": self.suite,
        }

    @property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self._context.workspace, self._context.run)

    def cancel(self, request: ControlFile) -> Progress:
        """A waiting job goes to failed/ with code `cancelled`; the active one is skipped."""
        job_id = request.arguments["id"]
        if self._intake.cancel(job_id):
            return Settled()
        job = self._context.queue.find(job_id)
        if job.lane == "active":
            reason = str(request.arguments.get("reason") or "cancelled")
            return self._orders.ask("skip", job_id=job_id, reason=reason)
        if job.lane in WAITING_LANES:
            job = self._context.queue.move(job, "failed")  # first: the trainer may be taking it at this moment
        elif not (job.lane == "failed" and job.verdict()["state"] == "queued"):
            raise UsageError(f"job {job_id} has ended ({job.lane})", fix="cancel takes waiting and active jobs")
        mark_cancelled(job)
        self._context.events.emit("job_failed", "cancelled while it waited", job_id=job_id, code="cancelled")
        return Settled()

    def retry(self, request: ControlFile) -> Progress:
        """A failed or held job goes through the gates again, under its own id."""
        job_id = request.arguments["id"]
        if is_job_id(job_id) and (self._context.workspace.claim_dir / job_id).is_dir():
            return Settled(note="it is being checked already")
        job = self._context.queue.find(job_id)
        if job.lane not in ("failed", "held"):
            raise UsageError(f"job {job_id} is {job.lane}", fix="retry takes failed and held jobs")
        self._intake.take_back(job)
        return Settled()

    def promote(self, request: ControlFile) -> Progress:
        return self._judging.ask_publish(self._catalogue.get(request.arguments["id"]).id)

    def rollback(self, request: ControlFile) -> Progress:
        return self._judging.ask_rollback()

    def rewind(self, request: ControlFile) -> Progress:
        """Take training back to a commit; the trainer does it between two steps."""
        checkpoint = self._catalogue.get(request.arguments["id"])
        return self._orders.ask("rewind", id=checkpoint.id, reason=str(request.arguments.get("reason") or "asked for"))

    def pin(self, request: ControlFile) -> Progress:
        """Keep a checkpoint whatever retention says; with "off": true no longer."""
        checkpoint = self._catalogue.get(request.arguments["id"])
        path = pins_file(self._context.workspace, self._context.run)
        kept, this = pinned(path), {checkpoint.id}
        write_json(path, {"pinned": sorted(kept - this if request.arguments.get("off") is True else kept | this)})
        return Settled({"step": checkpoint.step, "checkpoint": checkpoint.id})

    def evaluate(self, request: ControlFile) -> Progress:
        suite = request.arguments.get("suite")
        if suite is not None and not (isinstance(suite, str) and _SUITE_NAME.fullmatch(suite)):
            raise UsageError(f"{suite!r} is no suite name", fix="dropforge evaluate ID --suite NAME")
        return self._judging.ask_evaluation(self._catalogue.get(request.arguments["id"]).id, suite)

    def suite(self, request: ControlFile) -> Progress:
        """Check the suite that the CLI has put aside and rename it into place."""
        name = request.arguments["id"]
        if not _SUITE_NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no suite name", fix="use a-z, 0-9, _ and -, at most 64 characters")
        suites = self._context.workspace.own_suites_dir
        incoming, target = suites / f".incoming-{name}", suites / name
        if not incoming.is_dir():
            if target.is_dir():  # asked twice, or a crash after the rename
                return Settled(note="it is in place already")
            raise NotFoundError(f"no suite waits in {incoming.name}", fix="dropforge suite add FILE")
        if target.exists():
            raise UsageError(f"there is a suite {name!r} already", fix="remove that folder or take another name")
        _check_suite(read_json(incoming / "suite.json"), (incoming / "items.jsonl").read_bytes(), name)
        rename_durable(incoming, target)
        self._context.events.emit("suite_added", f"suite {name} is in place", suite=name)
        return Settled()


def mark_cancelled(job: Job) -> None:
    """Write the final verdict of a job that never ran."""
    verdict = job.verdict()
    verdict |= {"state": "failed", "code": "cancelled", "finished_at": iso_now()}
    verdict["message"] = "cancelled while it waited"
    verdict["fix"] = f"dropforge retry {job.job_id}"
    job.write_verdict(verdict)


def _check_suite(head: dict[str, Any], items: bytes, name: str) -> None:
    """Refuse what cannot be a suite at all. The CLI has had the judge read it, graders and roles included."""
    if head.get("name") != name:
        raise UsageError(f"suite.json says name {head.get('name')!r}, not {name!r}", fix="write the same name twice")
    ids: set[str] = set()
    for number, line in enumerate(items.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            item = parse_json(line, "items.jsonl", number)
        except JsonError as error:
            raise UsageError(error.message, where=error.where, fix="one JSON object a line") from error
        if not isinstance(item, dict) or not item.keys() & {"messages", "prompt", "text"}:
            why = f"items.jsonl:{number} has neither messages nor prompt nor text"
            raise UsageError(why, fix="give each item one of them")
        identity = str(item.get("id", number))  # as the judge names it
        if identity in ids:
            raise UsageError(f"items.jsonl:{number} repeats the id {identity!r}", fix="give each item its own id")
        ids.add(identity)
    if not ids:
        raise UsageError("the suite has no items", fix="put at least one item into items.jsonl")
