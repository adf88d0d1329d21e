"""One judgement: a candidate against what serves (arrow: judge).

Reads    checkpoints/<run>/, config/suites/, status/leaderboard.json
Writes   checkpoints/<run>/evaluations/<id>/samples.jsonl, status/leaderboard.json, then evaluations/<id>/metrics.json
Units    times in seconds and UTC; values in each suite's metric
Errors   NotFoundError for an unknown checkpoint or suite; ConfigError for a broken suite; ModelError; StorageError
Effects  redone from the start after a crash: nothing is half written, and a second time gives the same numbers
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any  # documents for metrics.json

from core.atomic import write_json
from core.checkpoints import Catalogue, Checkpoint
from core.errors import NotFoundError
from core.paths import Workspace
from core.settings import Settings
from core.status import iso_now, read_status
from trainer.evaluate.bench import Bench, locate
from trainer.evaluate.compare import EXAMPLES, effect, flips, paired, summarise
from trainer.evaluate.decide import Comparison, Decision, decide, guards_note, regressed
from trainer.evaluate.leaderboard import DECISION_KEYS, METRICS_FILE, Leaderboard, entry_of
from trainer.evaluate.results import SuiteResult
from trainer.evaluate.spending import alpha_at, resamples_for
from trainer.evaluate.suites import INCOMING, Suite, deciding, incoming_suite, load_suites

Results = Mapping[str, SuiteResult]


class Judge:
    """Judges checkpoints of one run."""

    def __init__(self, workspace: Workspace, settings: Settings, bench: Bench) -> None:
        self._workspace = workspace
        self._settings = settings
        self._bench = bench
        self._catalogue = Catalogue(workspace, settings.run)

    def judge(
        self, candidate_id: str, serving_id: str | None, *, superseded: Sequence[str] = (), only: str | None = None
    ) -> dict[str, Any]:
        """Judge a candidate and record the decision.

        Args:
            candidate_id: the commit to judge. serving_id: what serves now; None when nothing does.
            superseded: commits passed over for this one. only: one suite; its values are recorded, nothing is decided.

        Returns:
            The document written to metrics.json.
        """
        started = time.perf_counter()
        candidate = self._catalogue.get(candidate_id)
        serving = locate(self._workspace, self._settings.run, serving_id) if serving_id else None
        same = serving is not None and serving.id == candidate.id
        rival = serving if not same else None
        suites = self.suites([candidate], only)
        if only is None:
            suites = self.in_time(suites, [candidate, *([rival] if rival is not None else [])])
        after = self._bench.score(candidate, suites, noise=True)
        before = self._bench.score(rival, suites) if rival is not None else {}
        board = Leaderboard(self._workspace, self._settings.run)
        board.serving = serving_id
        verdict, comparisons = self._decide(board, candidate, serving_id, before, after)
        doc = self._document(candidate, serving_id, comparisons, before, after) | asdict(verdict)
        doc["promote"] = verdict.promotes
        doc["regressed"] = verdict.decision == "keep" and regressed(comparisons)
        doc["seconds"] = round(time.perf_counter() - started, 3)
        if only is not None:
            doc = self._earlier(candidate.id, doc)
        board.supersede(superseded, candidate.id)
        if "decision" in doc:
            board.record(entry_of(doc))
        board.mark_failed_gates()
        board.save()
        folder = self._workspace.evaluation_dir(self._settings.run, candidate.id)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / METRICS_FILE, doc)  # last: with it the daemon takes the candidate as judged
        return doc

    def _earlier(self, candidate_id: str, scored: dict[str, Any]) -> dict[str, Any]:
        """Scoring one suite by hand decides nothing: its values join what was decided before, if anything was."""
        known = read_status(self._workspace.evaluation_dir(self._settings.run, candidate_id) / METRICS_FILE)
        if known is None:
            return {key: value for key, value in scored.items() if key not in DECISION_KEYS}
        joined = {key: {**known.get(key, {}), **scored[key]} for key in ("suites", "comparisons", "flips", "effect")}
        return {**known, **joined}

    def in_time(self, suites: Sequence[Suite], checkpoints: Sequence[Checkpoint]) -> list[Suite]:
        """The suites, the guards among them cut to what these checkpoints can answer in `evaluation.budget_s`."""
        guards = [suite for suite in suites if suite.role == "guard"]
        cut = self._bench.within(self._settings.evaluation.budget_s, checkpoints, guards)
        return [suite for suite in suites if suite.role != "guard"] + cut

    def suites(self, checkpoints: Sequence[Checkpoint], only: str | None = None) -> list[Suite]:
        """The suites on disk and `incoming` over the jobs these checkpoints have trained on."""
        jobs = dict.fromkeys(job for checkpoint in checkpoints for job in self._jobs(checkpoint))
        live = [incoming_suite(self._workspace, self._settings.run, jobs)] if only in (None, INCOMING) else []
        return live + (load_suites(self._workspace, only) if only != INCOMING else [])

    def _jobs(self, checkpoint: Checkpoint) -> list[str]:
        """The jobs a checkpoint has trained on: rows held out of files that it never saw say nothing about it."""
        try:
            chain = self._catalogue.chain(checkpoint.id)
        except NotFoundError:  # of another run, or taken back
            chain = [checkpoint.manifest]
        return [str(job["job_id"]) for manifest in chain for job in manifest["jobs"]]

    def _decide(
        self, board: Leaderboard, candidate: Checkpoint, serving: str | None, before: Results, after: Results
    ) -> tuple[Decision, list[Comparison]]:
        if serving == candidate.id:
            return Decision("keep", None, "it is the checkpoint that serves"), []
        finite = all(result.finite for result in after.values())
        primary = {suite.name for suite in deciding(result.suite for result in after.values())}
        if serving is not None and not before:
            reason = (
                f"the serving checkpoint {serving} is no longer on this machine, so there is nothing to compare with"
            )
            kept = Decision("keep", None, "its loss is not a finite number")
            return Decision("no_baseline", None, reason) if finite else kept, []
        look = board.look(candidate.id, serving) if serving else 1
        alpha = alpha_at(look, total=self._settings.evaluation.alpha)
        comparisons = self._compare(before, after, primary, alpha, self._bench.noise.get(candidate.id, {}))
        items = sum(c.items for c in comparisons if c.role == "primary")
        decision = decide(finite=finite, serving=serving, items=items, look=look, alpha=alpha, comparisons=comparisons)
        note = guards_note(
            [(result.suite.size, len(result.items)) for result in after.values() if result.suite.role == "guard"]
        )
        return replace(decision, reason=decision.reason + note), comparisons

    def _compare(
        self, before: Results, after: Results, primary: set[str], alpha: float, noise: Mapping[str, float]
    ) -> list[Comparison]:
        share = alpha / max(1, len(primary))
        compared = []
        seed, resamples = self._settings.trainer.seed, resamples_for(share)
        for name, result in after.items():
            role = "primary" if name in primary else ("report" if name == INCOMING else result.suite.role)
            if name in before and before[name].finite and result.finite:
                floor = noise.get(name, 0.0)
                one = paired(before[name], result, role=role, resamples=resamples, seed=seed, noise=floor)
                compared += [one] if one is not None else []
        return compared

    def _document(
        self,
        candidate: Checkpoint,
        serving: str | None,
        comparisons: Sequence[Comparison],
        before: Results,
        after: Results,
    ) -> dict[str, Any]:
        seed = self._settings.trainer.seed
        values = {name: summarise(result, seed=seed) for name, result in after.items()}
        changed = {name: flips(before[name], after[name]) for name in after if name in before}
        return {
            "schema": "metrics.v1",
            "id": candidate.id,
            "step": candidate.step,
            "run": self._settings.run,
            "baseline": serving,
            "suites": {
                name: {
                    **value.as_dict(),
                    "of": after[name].suite.size,
                    "role": after[name].suite.role,
                    "sha256": after[name].suite.sha256,
                }
                for name, value in values.items()
            },
            "comparisons": {c.name: asdict(c) for c in comparisons},
            "flips": changed,
            "effect": {c.name: effect(c) for c in comparisons},
            "train_loss": candidate.manifest.get("train_loss"),
            **_for_the_trainer(values, after),
            "environment": self._bench.environment,
            "items_reused": self._bench.reused,
            "scoring_seconds": {name: round(taken, 3) for name, taken in self._bench.seconds.items()},
            "judged_at": iso_now(),
        }


def _for_the_trainer(values: Mapping[str, Any], after: Results) -> dict[str, Any]:
    """The facts that training_status.json repeats: accuracy in percent, held-out loss, the first examples."""
    named = [suite.name for suite in deciding(result.suite for result in after.values())]
    order = [name for name in [*named, INCOMING, *after] if name in values and values[name].exact_match is not None]
    live = values.get(INCOMING)
    first = order[0] if order else None
    return {
        "accuracy_percent": round(100 * values[first].exact_match, 2) if first else None,
        "validation_loss": live.value if live is not None else None,
        "recent_examples": _examples(after[first]) if first else [],
        "eval_samples": [
            {"answer_matches": item.score >= 1}
            for item in (after[first].items if first else ())
            if item.score is not None
        ],
    }


def _examples(result: SuiteResult) -> list[dict[str, Any]]:
    asked = [(item, scored) for item, scored in zip(result.suite.items, result.items, strict=True) if item.prompt]
    return [
        {
            "prompt": (item.prompt or ({"content": ""},))[-1]["content"],
            "golden_answer": item.expected,
            "model_answer": scored.answer,
            "matches": scored.score is not None and scored.score >= 1,
        }
        for item, scored in asked[:EXAMPLES]
    ]
