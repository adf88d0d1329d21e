"""Everything a report says, as one JSON document (beside all arrows).

Reads    queue/, inbox/rejected/, checkpoints/<run>/, status/; the GPUs through core.gpu      Writes  nothing
Units    times in UTC; losses in nats per trained token; money in the currency of the settings
Errors   none on purpose beyond those of the settings: what cannot be read is absent from the report
"""

import datetime
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any  # the report is a JSON document

from core.checkpoints import Catalogue
from core.errors import CheckpointError, UsageError
from core.gpu import GpuProbe
from core.paths import Workspace, display_name
from core.settings import Settings
from core.status import iso_now, read_status
from core.verdicts import all_verdicts
from monitoring.reports.curves import Finding, read_curve
from monitoring.reports.impact import by_generator, impacts
from monitoring.reports.records import Judgement, events, held_out_curve, judgements, steps
from monitoring.reports.text import counted

# Points of a curve in the report: more than a printed chart can show.
CHART_POINTS = 400
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DEPLOYS = ("deployed", "deploy_failed")
_EXAMPLES = 3
# What a single file's curve may say that somebody should do something about; the rest is shown with the file.
_ALARMING = ("overfitting", "instability")


def since_when(text: str | None, now: datetime.datetime) -> str:
    """The beginning of the period as an ISO time: `24h`, `7d`, an ISO date or time; None is a day ago.

    Raises:
        UsageError: none of these.
    """
    if text is None:
        return _iso(now - datetime.timedelta(days=1))
    if text[:-1].isdecimal() and text[-1] in _UNITS:
        return _iso(now - datetime.timedelta(seconds=min(int(text[:-1]) * _UNITS[text[-1]], 3_000_000_000)))
    try:
        then = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--since {text!r} is no time", fix="write 24h, 7d or 2026-11-22T03:00") from error
    return _iso(then.astimezone(datetime.UTC))


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def gather(workspace: Workspace, settings: Settings, probe: GpuProbe, since: str) -> dict[str, Any]:
    """Collect the report of the period from `since` (ISO) until now."""
    run = settings.run
    verdicts = all_verdicts(workspace)
    ended = [v for v in verdicts if (v.get("finished_at") or "") >= since]
    trained = steps(workspace, run)
    judged = judgements(workspace, run)
    held_out = held_out_curve(judged)
    curve = [(int(one["step"]), _number(one["loss"])) for one in trained]
    finding = read_curve(curve, held_out)
    board = read_status(workspace.status_file("leaderboard.json")) or {}
    effects = impacts(judged, _chain(workspace, run))
    report: dict[str, Any] = {
        "schema": "report.v1",
        "run": run,
        "model": settings.model_name,
        "since": since,
        "until": iso_now(),
        "files": _files(verdicts, ended),
        "training": _training(ended, [one for one in trained if str(one.get("time", "")) >= since]),
        "curve": {
            "finding": asdict(finding),
            "train": _thin(curve),
            "held_out": held_out,
            "by_file": _by_file(trained),
        },
        "jobs": _job_findings(ended, trained),
        "suites": _suites(board, judged),
        "serving": board.get("serving"),
        "deployments": [_deployment(e) for e in events(workspace) if _is_deployment(e, since)],
        "impact": {
            "files": [{**asdict(one), "total": one.total} for one in sorted(effects, key=lambda one: -one.total)],
            "generators": [
                dict(zip(("generator", "files", "gain"), row, strict=True)) for row in by_generator(effects)
            ],
        },
        "gpu": probe.read().as_dict(),
    }
    report["training"]["hours"], report["training"]["period_hours"] = _hours(report)
    report["cost"] = _cost(settings, report["training"]["seconds"], _training_seconds(verdicts))
    report["recommendations"] = _recommendations(report, finding)
    return report


def _number(value: object) -> float:
    """A loss as logged; null stands for one that was not finite."""
    return float(value) if isinstance(value, int | float) else float("nan")


def _chain(workspace: Workspace, run: str) -> list[dict[str, Any]]:
    try:
        return Catalogue(workspace, run).manifests()
    except CheckpointError:
        return []


def _files(verdicts: Sequence[Mapping[str, Any]], ended: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    refused = [v for v in ended if v["state"] in ("rejected", "failed", "held")]
    reasons = Counter(str(v["code"]) for v in refused)
    examples = {
        code: [{"file": display_name(str(v["file"])), "message": v["message"]} for v in refused if v["code"] == code]
        for code in reasons
    }
    return {
        "ended": dict(Counter(str(v["state"]) for v in ended)),
        "waiting": sum(v["state"] in ("queued", "active") for v in verdicts),
        "refused": [
            {"code": code, "files": count, "examples": examples[code][:_EXAMPLES]}
            for code, count in reasons.most_common()
        ],
    }


def _training(ended: Sequence[Mapping[str, Any]], period: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = [v["training"] for v in ended if isinstance(v.get("training"), dict)]
    return {
        "steps": len(period),
        "row_passes": sum(int(one.get("rows_trained") or 0) for one in done),
        "tokens": sum(int(one.get("trained_tokens") or 0) for one in period),
        "seconds": round(_training_seconds(ended), 1),
        "loss_first": period[0]["loss"] if period else None,
        "loss_last": period[-1]["loss"] if period else None,
    }


def _training_seconds(verdicts: Sequence[Mapping[str, Any]]) -> float:
    return sum(float(v["training"].get("seconds") or 0) for v in verdicts if isinstance(v.get("training"), dict))


def _thin(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float | None]]:
    """At most CHART_POINTS points, evenly spread; a loss that is not finite is null, since JSON has no NaN."""
    stride = max(1, -(-len(curve) // CHART_POINTS))
    return [(step, loss if loss - loss == 0 else None) for step, loss in curve[::stride]]


def _by_file(trained: Sequence[Mapping[str, Any]]) -> list[tuple[int, float | None]]:
    """The held-out loss after each epoch of each file, on rows of that file; a null between two files."""
    points: list[tuple[int, float | None]] = []
    before = None
    for one in trained:
        if "validation_loss" in one:
            points += [(int(one["step"]), None)] if points and one.get("job_id") != before else []
            loss = _number(one["validation_loss"])
            points.append((int(one["step"]), loss if loss - loss == 0 else None))
            before = one.get("job_id")
    return points[-CHART_POINTS:]


def _job_findings(ended: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curve of every job of the period by itself, with the loss on its own held-out rows after each epoch."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    held_out: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for one in trained:
        job_id, step = str(one.get("job_id")), int(one["step"])
        curves[job_id].append((step, _number(one["loss"])))
        if "validation_loss" in one:
            held_out[job_id].append((step, _number(one["validation_loss"])))
    named = [(v, read_curve(curves[v["job_id"]], held_out[v["job_id"]])) for v in ended if v["job_id"] in curves]
    return [
        {"job_id": v["job_id"], "file": display_name(str(v["file"])), **asdict(finding)}
        for v, finding in named
        if finding.kind != "too_short"
    ]


def _suites(board: Mapping[str, Any], judged: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The newest value of each suite, the best ever, and how far what serves is below it."""
    rows = []
    decided = [one for one in judged if one.metrics]
    newest = decided[-1].metrics.get("suites", {}) if decided else {}
    for name, value in sorted(newest.items()):
        best = board.get("best", {}).get(name, {})
        rows.append(
            {
                "suite": name,
                "metric": value["metric"],
                "role": value.get("role"),
                "n": value["n"],
                "of": value.get("of", value["n"]),
                "newest": {"id": decided[-1].id, "value": value["value"], "ci95": value["ci95"]},
                "best": {"id": best.get("id"), "value": best.get("value"), "drop_since": best.get("drop_since")},
            }
        )
    return rows


def _is_deployment(event: Mapping[str, Any], since: str) -> bool:
    return event.get("kind") in _DEPLOYS and str(event.get("time", "")) >= since


def _deployment(event: Mapping[str, Any]) -> dict[str, Any]:
    good = event["kind"] == "deployed"
    return {
        "time": event.get("time"),
        "checkpoint": event.get("checkpoint"),
        "ok": good,
        "message": event.get("message"),
    }


def _hours(report: Mapping[str, Any]) -> tuple[float, float]:
    """Hours of training and of the whole period: nobody records how busy a GPU is, but this much it was trained on."""
    since, until = (datetime.datetime.fromisoformat(report[key]) for key in ("since", "until"))
    return report["training"]["seconds"] / 3600, (until - since).total_seconds() / 3600


def _cost(settings: Settings, seconds: float, run_seconds: float) -> dict[str, Any] | None:
    """What the period's training cost, and what the whole run has cost so far, at today's price."""
    price = settings.report.price_per_hour
    if price is None:
        return None
    amount, run_amount = (round(price * spent / 3600, 4) for spent in (seconds, run_seconds))
    return {
        "currency": settings.report.currency,
        "amount": amount,
        "hours": seconds / 3600,
        "run_amount": run_amount,
        "run_hours": run_seconds / 3600,
    }


def _recommendations(report: Mapping[str, Any], finding: Finding) -> list[str]:
    advice = []
    if finding.kind not in ("healthy", "too_short"):
        advice.append(f"The run shows {finding.kind}: {finding.evidence}. {finding.recommendation.capitalize()}.")
    advice += [
        f"{one['file']} shows {one['kind']}: {one['evidence']}. {one['recommendation'].capitalize()}."
        for one in report["jobs"]
        if one["kind"] in _ALARMING
    ][:_EXAMPLES]
    if report["files"]["ended"].get("held"):
        advice.append("Some files are held and need a person: dropforge jobs.")
    advice += [
        f"Refused as {one['code']}: {counted(one['files'], 'file')}, e.g. {one['examples'][0]['file']}: "
        f"{one['examples'][0]['message']}"
        for one in report["files"]["refused"][:3]
    ]
    failed = [one for one in report["deployments"] if not one["ok"]]
    if failed:
        advice.append(f"{counted(len(failed), 'deployment')} failed, the last one so: {failed[-1]['message']}")
    worst = report["impact"]["generators"][-1] if len(report["impact"]["generators"]) > 1 else None
    if worst is not None and worst["gain"] < 0:
        advice.append(f"Files of the generator {worst['generator']} made the model worse on average; look at them.")
    for row in report["suites"]:
        drop = row["best"]["drop_since"]
        if row["role"] == "guard" and drop is not None and drop > 0.05:
            advice.append(f"What serves is {drop:.2g} below the best ever on the guard {row['suite']}.")
    return advice
