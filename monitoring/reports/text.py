"""A report as plain text, for terminals and messages (beside all arrows); pure."""

from collections.abc import Mapping, Sequence
from typing import Any  # the report is a JSON document

_FILES_SHOWN = 5


def render_text(report: Mapping[str, Any]) -> str:
    """The whole report in lines of words, sections separated by a blank line."""
    sections = [
        _head(report),
        _files(report["files"]),
        _training(report),
        _suites(report["suites"]),
        _impact(report["impact"]),
        _deployments(report["deployments"]),
        _machine(report),
        ["Recommendations:", *(f"  - {line}" for line in report["recommendations"])]
        if report["recommendations"]
        else ["Recommendations: none"],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def headline(report: Mapping[str, Any]) -> str:
    """The report in one line."""
    ended = report["files"]["ended"]
    refused = sum(ended.get(state, 0) for state in ("rejected", "failed", "held"))
    return (
        f"Dropforge {report['model']}: {counted(ended.get('done', 0), 'file')} trained, {refused} refused or failed, "
        f"{counted(report['training']['steps'], 'step')}, "
        f"{counted(sum(one['ok'] for one in report['deployments']), 'deployment')}"
    )


def _head(report: Mapping[str, Any]) -> list[str]:
    serving = report["serving"] or "nothing"
    return [
        headline(report),
        f"{report['since'][:16]} to {report['until'][:16]} UTC, run {report['run']}, serving {serving}",
    ]


def _files(files: Mapping[str, Any]) -> list[str]:
    ended = ", ".join(f"{count} {state}" for state, count in sorted(files["ended"].items())) or "none"
    lines = [f"Files ended: {ended}; waiting: {files['waiting']}"]
    for one in files["refused"]:
        lines.append(f"  {one['code']}: {one['files']}")
        lines += [f"    {example['file']}: {example['message']}" for example in one["examples"]]
    return lines


def _training(report: Mapping[str, Any]) -> list[str]:
    training, finding = report["training"], report["curve"]["finding"]
    lines = [
        f"Training: {training['steps']} steps, {training['row_passes']} row passes, "
        f"{training['tokens']} trained tokens, {training['seconds']:g} s"
    ]
    if training["loss_first"] is not None:
        lines.append(f"  loss {number(training['loss_first'])} -> {number(training['loss_last'])}")
    lines.append(f"  the run's curve: {finding['kind']} ({finding['evidence']})")
    lines += [
        f"  {one['file']}: {one['kind']} ({one['evidence']})" for one in report["jobs"] if one["kind"] != "healthy"
    ]
    return lines


def _suites(suites: Sequence[Mapping[str, Any]]) -> list[str]:
    if not suites:
        return ["Suites: nothing was judged yet"]
    lines = ["Suites (newest value, 95 % interval, best ever):"]
    for row in suites:
        low, high = row["newest"]["ci95"] or (None, None)
        lines.append(
            f"  {row['suite']} [{row['metric']}, n={asked(row)}]  {number(row['newest']['value'])} "
            f"[{number(low)}, {number(high)}]  best {number(row['best']['value'])} by {row['best']['id'] or '-'}"
        )
    return lines


def _impact(impact: Mapping[str, Any]) -> list[str]:
    if not impact["files"]:
        return []
    lines = ["What files did (gain on items scored before and after):"]
    shown = impact["files"][:_FILES_SHOWN]
    worst = [one for one in impact["files"][-_FILES_SHOWN:] if one not in shown]
    for title, rows in (("best", shown), ("worst", worst)):
        for one in rows:
            names = ", ".join(f"{file} ({generator})" for file, generator in one["files"])
            gains = ", ".join(f"{suite} {gain:+.3g}" for suite, gain in one["gains"].items())
            lines.append(f"  {title}: {names}: {gains}")
    lines += [
        f"  generator {g['generator']}: {g['gain']:+.3g} a file over {counted(g['files'], 'file')}"
        for g in impact["generators"]
    ]
    return lines


def _deployments(deployments: Sequence[Mapping[str, Any]]) -> list[str]:
    if not deployments:
        return ["Deployments: none"]
    return ["Deployments:", *(f"  {str(one['time'])[:16]}  {one['message']}" for one in deployments)]


def _machine(report: Mapping[str, Any]) -> list[str]:
    devices = report["gpu"]["devices"]
    lines = [
        f"GPU {gpu['name']}: {gpu['state']}, {number(gpu['utilization_percent'])} % busy when this report was made"
        for gpu in devices
    ]
    lines = [*(lines or ["GPU: none seen"]), usage(report["training"])]
    return [*lines, *([f"Cost: {costs(report['cost'])}"] if report["cost"] else [])]


def usage(training: Mapping[str, Any]) -> str:
    """How much of the period was spent on training."""
    hours, period = training["hours"], training["period_hours"]
    return f"Training ran {hours:.2f} of {period:.2f} hours ({hours / period if period > 0 else 0:.1%})"


def costs(cost: Mapping[str, Any]) -> str:
    """The cost of the period and of the run, in words."""
    return (
        f"{cost['amount']:.2f} {cost['currency']} for {cost['hours']:.2f} hours of training, "
        f"{cost['run_amount']:.2f} {cost['currency']} for the {cost['run_hours']:.2f} hours of the run so far"
    )


def asked(row: Mapping[str, Any]) -> str:
    """How many items of a suite were asked, and of how many when not all."""
    return str(row["n"]) if row["n"] >= row["of"] else f"{row['n']} of {row['of']}"


def number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
