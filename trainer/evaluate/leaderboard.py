"""status/leaderboard.json: every candidate, what it scored and what was decided (arrow: judge).

Reads    status/leaderboard.json, checkpoints/<run>/evaluations/<id>/{metrics.json,deploy.json}
Writes   status/leaderboard.json, whole, by rename: the judge is its one writer
Units    values in each metric's unit; times in UTC
Errors   StorageError when the disk refuses
"""

from collections.abc import Iterable, Mapping
from typing import Any  # a JSON document of config/schemas/leaderboard.schema.json

from core.paths import Workspace
from core.status import read_status, write_status
from trainer.evaluate.decide import PROMOTING
from trainer.evaluate.suites import LOSS_METRICS

FILE = "leaderboard.json"
METRICS_FILE = "metrics.json"
DECISION_KEYS = ("decision", "promote", "regressed", "p_value", "alpha", "look", "reason")
Entry = dict[str, Any]


class Leaderboard:
    """The document in memory; `save` replaces the file."""

    def __init__(self, workspace: Workspace, run: str) -> None:
        self._workspace = workspace
        self._run = run
        doc = read_status(workspace.status_file(FILE)) or {}
        self.serving: str | None = doc.get("serving")
        self.entries: list[Entry] = list(doc.get("candidates", []))
        for judged in self._judgements():
            if self.get(judged["id"]) is None:
                self.record(entry_of(judged))

    def _judgements(self) -> list[Entry]:
        """Every metrics.json with a decision, oldest first: what a lost leaderboard is rebuilt from."""
        folder = self._workspace.evaluation_dir(self._run, "-").parent
        found = [read_status(path) for path in folder.glob(f"*/{METRICS_FILE}")]
        return sorted((doc for doc in found if doc and "decision" in doc), key=lambda doc: str(doc.get("judged_at")))

    def get(self, checkpoint_id: str) -> Entry | None:
        return next((entry for entry in self.entries if entry["id"] == checkpoint_id), None)

    def record(self, entry: Entry) -> None:
        """Add a candidate, or replace what was said of it."""
        self.entries = [old for old in self.entries if old["id"] != entry["id"]] + [entry]

    def supersede(self, ids: Iterable[str], by: str) -> None:
        """Note candidates that were never judged because a newer one was."""
        for one in ids:
            if self.get(one) is None:
                step = int(one.partition("-")[0])
                reason = f"{by} was committed before its turn came, and only the newest is judged"
                self.record(
                    {"id": one, "step": step, "suites": {}, "decision": "superseded", "p_value": None, "reason": reason}
                )

    def look(self, candidate: str, baseline: str) -> int:
        """The number of this look: how often this baseline was challenged, this time included."""
        earlier = [e for e in self.entries if e.get("baseline") == baseline and e.get("look") and e["id"] != candidate]
        return 1 + len(earlier)

    def mark_failed_gates(self) -> None:
        """A candidate whose deployment failed its gate was not promoted after all, until a later try succeeds."""
        for entry in self.entries:
            folder = self._workspace.evaluation_dir(self._run, entry["id"])
            deploy = read_status(folder / "deploy.json") or {}
            refused = deploy.get("ok") is False and deploy.get("gate_failed", True)
            if refused and entry["decision"] in PROMOTING:
                entry["before_gate"] = {key: entry.get(key) for key in ("decision", "reason", "promote")}
                entry["promote"] = False
                entry["decision"] = "failed_gate"
                why = deploy.get("error") or "the deployment gate refused it"
                entry["reason"] = f"{why}; before that: {entry['reason']}"
            elif deploy.get("ok") is True and "before_gate" in entry:
                entry.update(entry.pop("before_gate"))

    def save(self) -> None:
        """Replace the file. Raises StorageError."""
        doc = {"serving": self.serving, "candidates": self.entries, "best": best_ever(self.entries, self.serving)}
        write_status(self._workspace.status_file(FILE), doc)


def entry_of(metrics: Mapping[str, Any]) -> Entry:
    """A candidate's line of the leaderboard from its metrics.json."""
    kept = ("id", "step", *DECISION_KEYS, "baseline", "judged_at", "seconds", "suites", "effect")
    return {key: metrics.get(key) for key in kept}


def best_ever(entries: Iterable[Mapping[str, Any]], serving: str | None) -> dict[str, Any]:
    """For each suite the best value ever scored, by whom, and how far the serving checkpoint is below it.

    A suite whose items changed begins anew, since the values cannot be compared.
    """
    best: dict[str, Any] = {}
    serves: dict[str, float] = {}
    for entry in entries:
        for name, suite in entry["suites"].items():
            for one, value in _values(entry, name, suite):
                if one == serving:
                    serves[name] = value
                known = best.get(name)
                same = known is not None and known["sha256"] == suite.get("sha256")
                if known is None or not same or _gain(suite["metric"], known["value"], value) > 0:
                    best[name] = {k: suite.get(k) for k in ("metric", "n", "sha256")} | {"id": one, "value": value}
    for name, record in best.items():
        drop = -_gain(record["metric"], record["value"], serves[name]) if name in serves else None
        record["drop_since"] = None if drop is None else max(0.0, drop)
    return best


def _values(entry: Mapping[str, Any], name: str, suite: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What the baseline and the candidate scored on one suite."""
    found = []
    before = ((entry.get("effect") or {}).get(name) or {}).get("before")
    if before is not None and entry.get("baseline"):
        found.append((str(entry["baseline"]), float(before)))
    if suite["value"] is not None:
        found.append((str(entry["id"]), float(suite["value"])))
    return found


def _gain(metric: str, before: float, after: float) -> float:
    return before - after if metric in LOSS_METRICS else after - before
