"""A verdict in the lines a person reads: what, where, how to mend, what is trained. Beside the arrows: the CLI.

Writes   stdout          Effects  untrusted text is shown on one line, escaped
"""

from typing import Any  # verdicts are JSON

import click

from core.commands.output import coloured, facts, say
from core.paths import display_name

_TOLD_ELSEWHERE = ("file", "state", "code", "message", "fix", "schema", "issues", "mask", "tokens", "audit")
_LINES_SHOWN = 5
_SERVED = "which is served, or a later one made from it"
_NOT_SERVED = "not served: dropforge status says what is judged now, dropforge leaderboard what was decided"


def show_verdict(verdict: dict[str, Any]) -> None:
    """What became of a file, or would."""
    state = verdict["state"] or "accepted"
    click.echo(f"{display_name(str(verdict['file']))}: {coloured(state)} ({verdict['code']}), {verdict['rows']} rows")
    if verdict["message"]:
        say(f"  {verdict['message']}")
    if verdict["fix"]:
        say(f"  fix: {verdict['fix']}")
    if verdict["checkpoint"]:
        say(f"  in checkpoint {verdict['checkpoint']}, {_SERVED if verdict['served'] else _NOT_SERVED}")
    for issue in verdict["issues"]:
        lines = ", ".join(str(n) for n in issue["examples"][:_LINES_SHOWN])
        say(f"  {issue['severity']}: {issue['code']} x{issue['count']}" + (f" (lines {lines})" if lines else ""))
        if "message" in issue:
            say(f"    {issue['message']}")


def show_all(verdict: dict[str, Any]) -> None:
    """Everything that is known of one job."""
    show_verdict(verdict)
    plain = [(key, value) for key, value in verdict.items() if key not in _TOLD_ELSEWHERE and value not in (None, [])]
    tokens = verdict["tokens"]
    by_role = tokens.get("by_role") or {}
    audit = verdict.get("audit") or {}
    shown: list[tuple[str, object]] = [(key, _compact(value)) for key, value in plain]
    shown.append(("tokens", _compact({key: value for key, value in tokens.items() if key != "by_role"})))
    shown += [(f"tokens of {role}", _compact(kept)) for role, kept in by_role.items() if role != "rows"]
    if audit.get("report"):
        shown.append(("report", audit["report"]))
    facts(shown)
    show_mask(verdict)


def show_mask(verdict: dict[str, Any], rows: int | None = None) -> None:
    """Paint what is trained of the rows that a verdict shows; None for all of them."""
    for row in (verdict.get("mask") or [])[:rows]:
        pieces = "".join(_piece(piece) for piece in row["pieces"])
        click.echo(f"  line {row['line']} ({row['trained']} of {row['tokens']} tokens trained): {pieces}")


def _piece(piece: dict[str, Any]) -> str:
    """Text that is trained stands in green, and in brackets for whoever sees no colour; what is cut off in red."""
    text = display_name(str(piece["text"]))
    if piece.get("cut"):
        return click.style(f"{{cut: {text}}}", fg="red")
    return click.style(f"[{text}]", fg="green") if piece["trained"] else text


def _compact(value: object) -> object:
    """`name value, name value` of what is nested, numbers to four digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inner(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "; ".join(str(_compact(part)) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else value


def _inner(value: object) -> str:
    return f"({_compact(value)})" if isinstance(value, dict | list) else str(_compact(value))
