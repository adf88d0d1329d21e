"""A report as one HTML page that needs nothing else and prints (beside all arrows); pure.

Everything that came from files, rows or models is escaped; the page holds no script and its own policy forbids any.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any  # the report is a JSON document

from monitoring.reports.svg import Series, line_chart
from monitoring.reports.text import asked, costs, headline, number, usage

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.4rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #ddd;
vertical-align:top;overflow-wrap:break-word}
th{font-weight:600}svg{width:100%;height:auto}polyline{fill:none;stroke-width:1.5}
.train{stroke:#2563a8;fill:none}.held{stroke:#b4400f;fill:#b4400f}polyline.held{fill:none}
.grid{stroke:#e4e4e4}.tick,.label{font-size:11px;fill:#555;text-anchor:middle}.end{text-anchor:end}.label{text-anchor:start}
.key::before{content:"";display:inline-block;width:1.2em;height:3px;margin:0 .4em .2em .9em}
.file{stroke:#2e8b57;fill:#2e8b57}polyline.file{fill:none;stroke-dasharray:5 3}.key.f::before{background:#2e8b57}
.key.t::before{background:#2563a8}.key.h::before{background:#b4400f}
.bad{color:#a11}.good{color:#176b2c}ul{padding-left:1.2rem}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}table,svg{break-inside:avoid}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_page(report: Mapping[str, Any]) -> str:
    """The whole report as an HTML document."""
    sections = [
        _summary(report),
        _curve(report["curve"]),
        _suites(report["suites"]),
        _impact(report["impact"]),
        _refused(report["files"]),
        _findings(report["jobs"]),
        _deployments(report["deployments"]),
        _machine(report),
    ]
    title = html.escape(headline(report))
    period = html.escape(f"{report['since'][:16]} to {report['until'][:16]} UTC")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><p>{period}</p>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{''.join(content)}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    titles = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _summary(report: Mapping[str, Any]) -> str:
    files, training = report["files"], report["training"]
    rows = [(state, count) for state, count in sorted(files["ended"].items())]
    rows += [("waiting", files["waiting"]), ("optimizer steps", training["steps"])]
    rows += [("row passes", training["row_passes"]), ("trained tokens", training["tokens"])]
    rows += [("training seconds", training["seconds"])]
    advice = _list(report["recommendations"]) if report["recommendations"] else "<p>Nothing to do.</p>"
    serving = html.escape(str(report["serving"] or "nothing"))
    return _section("What to do", advice) + _section(
        "Summary", f"<p>Serving: {serving}</p>", _table(("what", "number"), rows)
    )


def _curve(curve: Mapping[str, Any]) -> str:
    finding = curve["finding"]
    chart = line_chart(
        [
            Series("train", curve["train"], "train"),
            Series("held out in each file", curve["by_file"], "file"),
            Series("held out", curve["held_out"], "held", dots=True),
        ],
        x_label="optimizer step",
        y_label="loss, nats a token",
    )
    key = (
        '<p><span class="key t">train</span><span class="key f">held out, rows of the file in training</span>'
        '<span class="key h">held out, rows that all judged commits share</span></p>'
    )
    verdict = (
        f"{finding['kind']}: {finding['evidence']}. Rule: {finding['rule']}. {finding['recommendation'].capitalize()}."
    )
    rows = [(step, number(loss)) for step, loss in curve["held_out"]]
    table = _table(("step", "held-out loss"), rows) if rows else ""
    return _section("Loss", chart, key, f"<p>{html.escape(verdict)}</p>", table)


def _suites(suites: Sequence[Mapping[str, Any]]) -> str:
    if not suites:
        return _section("Suites", "<p>Nothing was judged yet.</p>")
    rows = []
    for row in suites:
        low, high = row["newest"]["ci95"] or (None, None)
        value = f"{number(row['newest']['value'])} [{number(low)}, {number(high)}]"
        best = f"{number(row['best']['value'])} ({row['best']['id'] or '-'})"
        rows.append(
            (row["suite"], row["metric"], row["role"], asked(row), value, best, number(row["best"]["drop_since"]))
        )
    head = ("suite", "metric", "role", "items", "newest [95 %]", "best ever", "serving is below it by")
    return _section("Suites", _table(head, rows))


def _impact(impact: Mapping[str, Any]) -> str:
    if not impact["files"]:
        return ""
    rows = [
        (
            ", ".join(f"{file} ({generator})" for file, generator in one["files"]),
            ", ".join(f"{suite} {gain:+.3g}" for suite, gain in one["gains"].items()),
            one["checkpoint"],
        )
        for one in impact["files"]
    ]
    makers = [(g["generator"], g["files"], f"{g['gain']:+.3g}") for g in impact["generators"]]
    return _section(
        "What each file did, best first",
        _table(("files", "gain by suite, on items scored before and after", "checkpoint"), rows),
        _table(("generator", "files", "mean gain"), makers),
    )


def _refused(files: Mapping[str, Any]) -> str:
    if not files["refused"]:
        return ""
    rows = [
        (one["code"], one["files"], "; ".join(f"{e['file']}: {e['message']}" for e in one["examples"]))
        for one in files["refused"]
    ]
    return _section("Refused and failed", _table(("reason", "files", "examples"), rows))


def _findings(jobs: Sequence[Mapping[str, Any]]) -> str:
    rows = [(one["file"], one["kind"], one["rule"], one["evidence"], one["recommendation"]) for one in jobs]
    return _section("Curves by file", _table(("file", "verdict", "rule", "evidence", "advice"), rows)) if rows else ""


def _deployments(deployments: Sequence[Mapping[str, Any]]) -> str:
    rows = [(str(one["time"])[:19], "ok" if one["ok"] else "failed", one["message"]) for one in deployments]
    return _section("Deployments", _table(("time", "result", "what"), rows) if rows else "<p>None.</p>")


def _machine(report: Mapping[str, Any]) -> str:
    rows = [
        (gpu["name"], gpu["state"], number(gpu["utilization_percent"]), number(gpu["temperature_c"]))
        for gpu in report["gpu"]["devices"]
    ]
    table = _table(("GPU", "state", "% busy at this moment", "°C"), rows) if rows else "<p>No GPU was seen.</p>"
    cost = report["cost"]
    line = costs(cost) if cost else ""
    used = f"<p>{html.escape(usage(report['training']))}.</p>"
    return _section("Machine", table, used, f"<p>{html.escape(line)}</p>" if line else "")
