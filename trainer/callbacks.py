"""What the trainer tells the world while it works: training_status.json and metrics.jsonl (trainer -> status).

Reads    checkpoints/<run>/evaluations/<id>/metrics.json, when the leaderboard changed
Writes   status/training_status.json (replaced, at most twice a second unless something happened),
         checkpoints/<run>/metrics.jsonl (appended; of two lines with the same step the later one holds)
Units    seconds, tokens, losses in nats a token
"""

import json
import logging
import os
import time
from typing import Any  # JSON documents

from core.errors import StorageError
from core.paths import Workspace
from core.status import iso_now, read_status, write_status

_VIEW_EVERY_S = 0.5
_RATE_MEMORY = 0.9  # share of the old value in the running tokens/s
_JUDGED = ("accuracy_percent", "validation_loss", "recent_examples", "eval_samples")
_SHOWN = (
    *(
        "status",
        "pid",
        "current_file",
        "job_id",
        "run",
        "current_step",
        "total_steps",
        "job_step",
        "job_steps",
        "epoch",
        "loss",
        "learning_rate",
    ),
    *("tokens_per_sec", "eta_s", "total_evals", "evaluated", *_JUDGED, "reason", "heartbeat", "ack"),
)
logger = logging.getLogger(__name__)


class TrainingView:
    """The view of one trainer process."""

    def __init__(self, workspace: Workspace, run: str) -> None:
        self._workspace = workspace
        self._run = run
        self._path = workspace.status_file("training_status.json")
        self._last_write = 0.0
        self._board_mark = 0
        before = read_status(self._path) or {}
        ack = before.get("ack") or {}
        self._doc: dict[str, Any] = {
            **dict.fromkeys(_SHOWN),
            "status": "starting",
            "pid": os.getpid(),
            "run": run,
            "current_step": 0,
            "total_evals": 0,
            "heartbeat": iso_now(),
            "ack": {"seq": int(ack.get("seq", 0)), "step": ack.get("step"), "checkpoint": ack.get("checkpoint")},
        }

    @property
    def acknowledged(self) -> int:
        seq: int = self._doc["ack"]["seq"]
        return seq

    def show(self, **known: Any) -> None:  # JSON values
        """Change what is shown and write it at once."""
        self._doc |= known
        self._write()

    def acknowledge(self, seq: int, step: int, checkpoint: str | None) -> None:
        """Tell the daemon that its order has taken effect."""
        self.show(ack={"seq": seq, "step": step, "checkpoint": checkpoint})

    def beat(self, **known: Any) -> None:  # JSON values
        """Change what is shown; written when the last writing is half a second old."""
        self._doc |= known
        if time.monotonic() - self._last_write >= _VIEW_EVERY_S:
            self._write()

    def _write(self) -> None:
        self._last_write = time.monotonic()
        self._doc["heartbeat"] = iso_now()
        self._take_evaluation()
        try:
            write_status(self._path, self._doc)
        except StorageError as error:
            logger.warning("the status could not be written: %s", error)

    def _take_evaluation(self) -> None:
        """Show what the judge found last, when it has found something new."""
        board_file = self._workspace.status_file("leaderboard.json")
        try:
            mark = board_file.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if mark == self._board_mark:
            return
        self._board_mark = mark
        candidates = (read_status(board_file) or {}).get("candidates") or []
        self._doc["total_evals"] = len(candidates)
        for candidate in reversed(candidates):
            found = read_status(self._workspace.evaluation_dir(self._run, candidate["id"]) / "metrics.json")
            if found is not None:
                self._doc |= {key: found.get(key) for key in _JUDGED} | {"evaluated": candidate["id"]}
                return


class StepLog:
    """metrics.jsonl of a run: one line an optimizer step."""

    def __init__(self, workspace: Workspace, run: str) -> None:
        self._path = workspace.metrics_file(run)

    def write(self, **values: Any) -> None:  # JSON values
        """Append one line. A full disk costs the line, never the training."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**values, "time": iso_now()}) + "\n")
        except OSError as error:
            logger.warning("a line of %s is lost: %s", self._path, error)


class Pace:
    """Tokens a second and time left, from the steps just taken."""

    def __init__(self) -> None:
        self._tokens_per_s: float | None = None
        self._step_s: float | None = None

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens_per_s = _mixed(self._tokens_per_s, tokens / seconds)
        self._step_s = _mixed(self._step_s, seconds)

    @property
    def tokens_per_s(self) -> float | None:
        return None if self._tokens_per_s is None else round(self._tokens_per_s, 1)

    def eta_s(self, steps_left: int) -> float | None:
        return None if self._step_s is None else round(self._step_s * steps_left, 1)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else _RATE_MEMORY * old + (1 - _RATE_MEMORY) * new
