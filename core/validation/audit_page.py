"""A verdict and its audit as one page: nothing is loaded, nothing runs, it prints (background child; `check --report`).

Format   HTML with its own style and inline SVG; every text of a file is untrusted and escaped by Jinja's autoescape
"""

from functools import cache
from typing import Any  # verdicts are JSON

import jinja2

from core.paths import display_name

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #59636e; --line: #d1d9e0; --mark: #1a7f37; --warn: #9a6700;
  --bad: #cf222e; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --line: #3d444d; --mark: #3fb950;
  --warn: #d29922; --bad: #f85149; --paper: #0d1117; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.lead { font-size: 1.1rem; } .dim { color: var(--dim); } .error { color: var(--bad); } .warning { color: var(--warn); }
table { border-collapse: collapse; width: 100%; }
th { white-space: nowrap; } th, td { text-align: left; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .6rem; }
ins { text-decoration: none; color: var(--mark); border-bottom: 2px solid var(--mark); } del { color: var(--bad); }
svg { max-width: 100%; height: auto; } svg rect { fill: var(--mark); } svg text { fill: var(--dim); font-size: 11px; }
@media print { body { margin: 0; max-width: none; } section { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ v.file }}: audit</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>STYLE</style></head><body>
<h1>{{ v.file }}</h1>
<p class="lead">{{ v.message or v.code }}</p>
{% if v.fix %}<p>To mend it: {{ v.fix }}</p>{% endif %}
<p class="dim">{{ v.job_id or "not dropped" }} · level {{ v.level }} · spec {{ v.spec or "unknown" }} ·
{{ "{:,}".format(v.bytes) }} bytes · sha256 {{ v.sha256 }}</p>
<section><h2>Rows</h2>{{ table(["all", "trained on", "held out", "set aside", "dropped"],
  [[v.rows, v.rows_train, v.rows_held_out, v.rows_set_aside, v.rows_dropped]]) }}</section>
<section><h2>What was found</h2>
{% if v.issues %}<table><tr><th>kind</th><th class="n">rows</th><th>what</th><th>e.g. lines</th></tr>
{% for i in v.issues %}<tr><td class="{{ i.severity }}">{{ i.severity }}: {{ i.code }}</td>
<td class="n">{{ i.count }}</td><td>{{ i.message or "" }}</td><td>{{ i.examples | join(", ") }}</td></tr>
{% endfor %}</table>
{% else %}<p>Nothing.</p>{% endif %}</section>
<section><h2>Tokens</h2>{% set t = v.tokens %}
{{ table(["all", "trained", "cut rows", "p50", "p95", "p99", "longest"],
  [[t.total, t.trained, t.truncated_rows, t.p50, t.p95, t.p99, t.max]]) }}
{% if roles %}<h3>By who speaks, a turn ({{ roles.rows }} rows counted)</h3>{{ table(
  ["role", "turns", "tokens", "p50", "p95", "p99", "longest"], role_rows) }}{% endif %}
{% for title, name in charts if a[name] %}<h3>{{ title }}</h3>{{ chart(a[name]) }}{% endfor %}</section>
{% if a.languages and a.languages.rows %}<section><h2>Languages of the answers</h2>
<p class="dim">{{ a.languages.told }} of {{ a.languages.sampled }} sampled rows could be told.</p>
{{ table(["language", "rows"], a.languages.rows.items() | map("list") | list) }}</section>{% endif %}
{% if a.duplicates %}<section><h2>Rows like others</h2>
{{ table(["compared", "seen before", "nearly, before", "nearly, in this file"], [[a.duplicates.rows,
  a.duplicates.seen_before, a.duplicates.near_before, a.duplicates.near_in_file]]) }}
{% if a.duplicates.files %}<h3>Files before it with the most of them</h3>{{ table(["file", "job", "rows"], file_rows) }}
{% endif %}{% if a.duplicates.pairs %}<h3>Examples</h3>{{ table(["line", "like line", "of", "alike"], pair_rows) }}
{% endif %}</section>{% endif %}
{% if v.mask %}<section><h2>What is trained</h2><p class="dim">Underlined: trained. Struck: cut away at max_length.</p>
{% for row in v.mask %}<h3>line {{ row.line }}: {{ row.trained }} of {{ row.tokens }} tokens</h3><pre>
{%- for piece in row.pieces %}{% set tag = "ins" if piece.trained else "del" if piece.cut else "span" %}
{%- if tag == "ins" %}<ins>{{ piece.text | visible }}</ins>{% elif tag == "del" %}<del>{{ piece.text | visible }}</del>
{%- else %}<span>{{ piece.text | visible }}</span>{% endif %}{% endfor %}</pre>{% endfor %}</section>{% endif %}
</body></html>
"""

_MACROS = """
{% macro table(heads, rows) %}<table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ "{:,}".format(cell) if cell is integer else cell }}</td>
{% endfor %}</tr>{% endfor %}</table>{% endmacro %}
{% macro chart(histogram) %}{% set top = [histogram.counts | max, 1] | max %}
<svg viewBox="0 0 500 120" width="500" role="img">{% for count in histogram.counts %}
<rect x="{{ loop.index0 * 20 + 1 }}" y="{{ 95 - 90 * count / top }}" width="18" height="{{ 90 * count / top }}">
<title>{{ histogram.edges[loop.index0] }} to {{ histogram.edges[loop.index] }}: {{ count }} rows</title></rect>
{% endfor %}
<text x="0" y="112">{{ "{:,g}".format(histogram.edges[0]) }}</text>
<text x="480" y="112" text-anchor="end">{{ "{:,g}".format(histogram.edges[-1]) }}</text></svg>{% endmacro %}
"""
_CHARTS = (
    ("Tokens of a row", "row_tokens"),
    ("Trained tokens of a row", "trained_tokens"),
    ("Share of a row that is trained", "trained_share"),
)


def _visible(text: str) -> str:
    """A row's text with nothing in it that steers a terminal or turns the reading direction; lines stay lines."""
    return "\n".join(map(display_name, text.split("\n")))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True)
    environment.filters["visible"] = _visible
    return environment.from_string(_MACROS + _PAGE.replace("STYLE", _STYLE))


def page(verdict: dict[str, Any]) -> str:
    """The page of one verdict, with what stands under its `audit` if there is one."""
    audit = verdict.get("audit") or {}
    roles = audit.get("by_role") or verdict["tokens"].get("by_role") or {}
    numbers = ("turns", "total", "p50", "p95", "p99", "max")
    duplicates = audit.get("duplicates") or {}
    return _template().render(
        v=verdict,
        a=audit,
        charts=_CHARTS,
        roles=roles,
        role_rows=[[role, *(entry[name] for name in numbers)] for role, entry in roles.items() if role != "rows"],
        file_rows=[[entry["file"], entry["job_id"], entry["rows"]] for entry in duplicates.get("files", ())],
        pair_rows=[
            [pair["line"], pair["other"]["line"], pair["other"]["job_id"] or "this file", pair["alike"]]
            for pair in duplicates.get("pairs", ())
        ],
    )
