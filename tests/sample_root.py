"""A root as it looks in the middle of a working day, laid down without training anything.

`SampleRoot(workspace)` writes the same files that the processes write, through the same code (`new_verdict`,
`Catalogue.commit`, `write_status`), so a change of a shape shows here. Tests add what they are about.
"""

import datetime
import hashlib
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

from core.checkpoints import Catalogue, Checkpoint
from core.daemon.pid_manager import boot_id
from core.job_queue import new_job_id, new_verdict
from core.ledger import open_ledger
from core.paths import LANES, Workspace
from core.status import iso_now, write_status


def stamp(seconds_ago: float = 0.0) -> str:
    """An ISO time of ours, that long ago."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)
    return then.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class SampleRoot:
    """Builders for one root."""

    def __init__(self, workspace: Workspace) -> None:
        self.ws = workspace
        self.catalogue = Catalogue(workspace, "main")
        self._last_id: str | None = None

    def job(self, lane: str, file: str = "rows.jsonl", **known: Any) -> dict[str, Any]:
        """A job folder in a lane of queue/ (or "rejected"), with data and verdict. Returns the verdict."""
        self._last_id = new_job_id(self._last_id)
        parent = self.ws.rejected_dir if lane == "rejected" else self.ws.lane(lane)
        folder = parent / self._last_id
        folder.mkdir(parents=True)
        (folder / "data.jsonl").write_text('{"text": "a row"}\n')
        state = {"high": "queued", "normal": "queued", "low": "queued"}.get(lane, lane)
        facts: dict[str, Any] = {
            "job_id": self._last_id,
            "file": file,
            "sha256": hashlib.sha256(self._last_id.encode()).hexdigest(),
            "bytes": 18_432,
            "rows": 120,
            "rows_train": 118,
            "rows_held_out": 2,
            "state": state,
            "spec": "chat_sft_v1",
            "level": "standard",
            "received_at": stamp(60),
            "finished_at": stamp(5) if state in ("done", "failed", "held", "rejected") else None,
        }
        verdict = new_verdict(**(facts | known))
        (folder / "verdict.json").write_text(json.dumps(verdict))
        return verdict

    def many_done(self, count: int) -> None:
        """Fill done/ with `count` jobs, quickly."""
        template = self.job("done", "bulk.jsonl")
        start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        for number in range(count - 1):
            job_id = f"{start + datetime.timedelta(seconds=number):%Y%m%dT%H%M%S%f}Z-{number:06x}"
            folder = self.ws.lane("done") / job_id
            folder.mkdir()
            (folder / "verdict.json").write_text(json.dumps(template | {"job_id": job_id}))

    def checkpoint(self, step: int, jobs: list[dict[str, Any]] | None = None, epochs: int = 1) -> Checkpoint:
        """Commit a checkpoint on top of the head; `jobs` are verdicts whose rows it trained to the end."""
        head = self.catalogue.head()
        staged = self.catalogue.stage(step)
        (staged / "model.safetensors").write_bytes(f"weights of step {step} {secrets.token_hex(4)}".encode())
        (staged / "config.json").write_text("{}")
        entries = [
            {
                **{key: verdict[key] for key in ("job_id", "file", "sha256", "rows_train")},
                "generator": "manual",
                "rows_trained": verdict["rows_train"] * epochs,
                "epochs": epochs,
            }
            for verdict in jobs or []
        ]
        return self.catalogue.commit(
            staged,
            {
                "step": step,
                "parent": head.id if head else None,
                "base": head.manifest["base"] if head else {"name": "dropforge-tiny", "sha256": None},
                "tokenizer_sha256": "0" * 64,
                "chat_template_sha256": "0" * 64,
                "profile": None,
                "config_sha256": "0" * 64,
                "versions": {},
                "jobs": entries,
                "train_loss": 1.25,
            },
        )

    def status(self, name: str, document: dict[str, Any]) -> None:
        write_status(self.ws.status_file(f"{name}.json"), document)

    def daemon(self, state: str = "idle", **known: Any) -> None:
        """status/daemon.json; this very process plays the daemon."""
        facts: dict[str, Any] = {
            "state": state,
            "pid": os.getpid(),
            "boot_id": boot_id(),
            "since": stamp(300),
            "heartbeat": iso_now(),
            "reason": "waiting for files",
            "current_job": None,
            "step": None,
            "queue": dict.fromkeys(LANES, 0),
            "ignored": [],
            "children": {"trainer": {"state": "RUNNING", "pid": os.getpid(), "restarts": 0}},
        }
        self.status("daemon", facts | known)

    def training(self, **known: Any) -> None:
        facts: dict[str, Any] = {
            "status": "training",
            "current_file": None,
            "current_step": 0,
            "total_steps": None,
            "epoch": None,
            "loss": None,
            "learning_rate": None,
            "tokens_per_sec": None,
            "eta_s": None,
            "total_evals": 0,
            "accuracy_percent": None,
            "validation_loss": None,
            "recent_examples": None,
            "eval_samples": None,
            "heartbeat": iso_now(),
            "ack": {"seq": 1, "step": 0, "checkpoint": None},
        }
        self.status("training_status", facts | known)

    def goes_on(self, step: int, loss: float) -> None:
        """The job in training comes to `step`: all else in the two status files stays as it was."""
        for name, key in (("daemon", "step"), ("training_status", "current_step")):
            known = json.loads(self.ws.status_file(f"{name}.json").read_text())
            self.status(name, known | {key: step, "heartbeat": iso_now()})
        self.losses({step: loss})

    def deployment(self, serving: str | None, previous: str | None = None) -> None:
        facts = {"serving": serving, "previous": previous, "url": "http://127.0.0.1:8765", "seen_at": iso_now()}
        self.status(
            "deployment", {**facts, "ok": True, "error": None, "checkpoints": [c for c in (serving, previous) if c]}
        )

    def leaderboard(self, serving: str | None, *candidates: dict[str, Any]) -> None:
        self.status("leaderboard", {"serving": serving, "candidates": list(candidates)})

    def event(self, **known: Any) -> None:
        """One line more in status/events.jsonl."""
        with self.ws.status_file("events.jsonl").open("a") as file:
            file.write(json.dumps({"seq": 1, "time": iso_now(), **known}) + "\n")

    def losses(self, losses: dict[int, float]) -> None:
        """Steps of the run in metrics.jsonl and, as the daemon would, in the ledger."""
        path = self.ws.metrics_file("main")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            for step, loss in losses.items():
                line = {"step": step, "loss": loss, "learning_rate": 4e-4, "tokens_per_sec": 8421.0, "time": stamp()}
                file.write(json.dumps(line) + "\n")
        ledger = open_ledger(f"sqlite:///{self.ws.status_file('ledger.db')}")
        ledger.feed_metrics("main", path)
        ledger.close()


def candidate(checkpoint: Checkpoint, decision: str, **known: Any) -> dict[str, Any]:
    """A line of the leaderboard."""
    suites = {"incoming": {"metric": "loss", "n": 40, "value": 0.82, "ci95": [0.71, 0.93]}}
    facts = {"id": checkpoint.id, "step": checkpoint.step, "suites": suites, "decision": decision}
    return {**facts, "p_value": 0.004, "reason": "the loss fell on held-out rows", **known}


def working_day(workspace: Workspace) -> SampleRoot:
    """Two jobs done, one active, two waiting, two refused, one failed; three checkpoints; one promoted and served."""
    sample = SampleRoot(workspace)
    base = sample.checkpoint(0)
    first = sample.job("done", "greetings.jsonl", rows=240, rows_train=235, rows_held_out=5)
    kept = sample.checkpoint(60, [first])
    second = sample.job("done", "leftshift-train.jsonl", rows=1944, rows_train=1905, rows_held_out=39)
    best = sample.checkpoint(560, [second])
    for verdict, committed, effect in ((first, kept, (2.31, 2.29)), (second, best, (2.29, 0.42))):
        finish(sample, verdict, committed, effect, served=committed is best)
    _unlucky(sample)
    active = sample.job("active", "dialogues-0412.jsonl", rows=5200, rows_train=5096, rows_held_out=104)
    sample.job("normal", "dialogues-0413.jsonl")
    sample.job("low", "old-notes.jsonl")
    sample.daemon(
        "training",
        reason="training dialogues-0412.jsonl",
        current_job=active["job_id"],
        step=612,
        ignored=[
            {"file": "notes.txt", "reason": "suffix .txt is not known; known: .jsonl"},
            {"file": "latest.jsonl", "reason": "a symbolic link; links are never read"},
        ],
    )
    sample.training(
        current_file="dialogues-0412.jsonl",
        current_step=612,
        total_steps=879,
        epoch=0.16,
        loss=1.371,
        learning_rate=0.0004,
        tokens_per_sec=8421.0,
        eta_s=164.0,
        total_evals=2,
        accuracy_percent=94.0,
        validation_loss=0.42,
        recent_examples=[
            {"prompt": "①⓪①① << 2 ?", "golden_answer": "①⓪①①⓪⓪", "model_answer": "①⓪①①⓪⓪", "matches": True},
            {"prompt": "①① << 4 ?", "golden_answer": "①①⓪⓪⓪⓪", "model_answer": "①①⓪⓪⓪", "matches": False},
        ],
        eval_samples=[{"answer_matches": True}, {"answer_matches": False}],
    )
    sample.deployment(best.id, base.id)
    sample.leaderboard(
        best.id,
        candidate(kept, "keep", p_value=0.31, reason="not better than 0: p = 0.31, alpha 0.05"),
        candidate(best, "promote", p_value=0.0001, reason="better on leftshift: 94 of 100 against 0 of 100"),
    )
    control = {"command": "checkpoint", "seen_at": stamp(90), "effective_at": stamp(89), "step": 588}
    sample.status("control", control | {"checkpoint": best.id})
    generators = {
        "manual@": {"files": 5, "rows": 7500, "passed": 4, "failed": 1, "fail_rate": 0.2, "top_errors": ["bad_json"]},
        "syllo_local@2": {"files": 2, "rows": 300, "passed": 1, "failed": 1, "fail_rate": 0.5, "top_errors": ["leak"]},
    }
    summary = {"worst_offenders": ["syllo_local@2"]}
    sample.status("data_lineage", {"generators": generators, "validators": {}, "summary": summary})
    sample.event(kind="promoted", message=f"{best.id} is served now", checkpoint=best.id)
    sample.losses({step: 2.3 * math.exp(-step / 180) + 0.35 + 0.08 * math.sin(step * step) for step in range(1, 613)})
    return sample


def finish(
    sample: SampleRoot, verdict: dict[str, Any], committed: Checkpoint, effect: tuple[float, float], *, served: bool
) -> None:
    """Write the trainer's and the judge's part into a done job's verdict."""
    before, after = effect
    verdict |= {
        "message": f"trained {verdict['rows_train']} rows; {verdict['rows_held_out']} held out",
        "checkpoint": committed.id,
        "served": served,
        "training": {
            "first_step": 1,
            "last_step": committed.step,
            "rows_trained": verdict["rows_train"],
            "tokens_trained": 48_211,
            "loss_first": before,
            "loss_last": after,
            "seconds": 71.5,
        },
        "effect": {"incoming": {"before": before, "after": after, "delta": after - before, "ci95": [-2.1, -1.6]}},
    }
    (sample.ws.lane("done") / verdict["job_id"] / "verdict.json").write_text(json.dumps(verdict))


def _unlucky(sample: SampleRoot) -> None:
    sample.job(
        "rejected",
        "broken.jsonl",
        code="bad_json",
        line=17,
        column=42,
        message="line 17, column 42: a comma is missing between two members",
        fix="mend line 17 of broken.jsonl and drop it again",
    )
    sample.job(
        "rejected",
        "too-good.jsonl",
        code="contaminated",
        line=3,
        message="12 rows ask what the suite leftshift asks (first: line 3)",
        fix="take those rows out: a model must not train on its exam",
    )
    sample.job(
        "failed",
        "spiky.jsonl",
        code="non_finite_loss",
        message="the loss became NaN at step 601 (rows 88-95)",
        fix="look at rows 88-95, or lower hyperparams.learning_rate, then dropforge retry",
    )


def write_root(folder: Path) -> SampleRoot:
    """A whole root in an empty folder, for looking at the page: see docs/monitor.md."""
    workspace = Workspace(folder)
    workspace.make_folders()
    workspace.config_file.write_text("{}\n")
    return working_day(workspace)
