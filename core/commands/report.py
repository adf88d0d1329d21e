"""`dropforge report`: what happened since a time, for people. Beside the arrows: the CLI of the monitor's reports.

Effects  runs as `python -m monitoring.reports`, which reads like the monitor does
"""

from pathlib import Path

import click

from core.commands.invocation import common_options, current
from core.commands.processes import become


@click.command("report")
@click.option("--since", metavar="T", help="An ISO time, or 24h, or 7d.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write a page instead of printing text.")
@common_options
def report_command(since: str | None, html: Path | None) -> None:
    """Say what was dropped, trained, judged and served."""
    options = [f"--since={since}"] if since else []  # one word: it may begin with a dash
    options += ["--html", str(html.absolute())] if html else []
    become("monitoring.reports", *options, *(["--json"] if current().as_json else []))
