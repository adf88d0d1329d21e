"""`python -m monitoring.reports`: a report now, as text, JSON or HTML; `--send` is the daily one (beside all arrows).

Reads    the root, like the monitor       Writes  --html FILE; with --send status/reports/<date>.{txt,html}
Effects  with --send the report goes to the configured receivers
Errors   exit 2 for a usage or configuration error, 1 when a receiver does not take the report, 4 for the disk
"""

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from core.atomic import write_bytes
from core.daemon.pid_manager import die_with_parent
from core.errors import DropforgeError
from core.gpu import NvmlProbe
from core.logs import setup_logging
from core.paths import Workspace, find_root
from core.settings import load_settings
from monitoring.reports.facts import gather, since_when
from monitoring.reports.page import render_page
from monitoring.reports.send import send
from monitoring.reports.text import headline, render_text

logger = logging.getLogger("reports")
_KEEP_DAYS = 366


def main(argv: Sequence[str] | None = None) -> int:
    """Make one report. Returns the exit code."""
    die_with_parent()
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except DropforgeError as error:
        sys.stderr.write(f"report: {error}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m monitoring.reports", description="What happened, and what to do.")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--since", metavar="T", help="24h, 7d or an ISO time; a day ago when not given")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write one self-contained page")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")
    parser.add_argument("--send", action="store_true", help="file it under status/reports/ and send it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    workspace = Workspace(find_root(arguments.root))
    settings = load_settings(workspace, arguments.set)
    now = datetime.datetime.now(datetime.UTC)
    probe = NvmlProbe()
    try:
        report = gather(workspace, settings, probe, since_when(arguments.since, now))
    finally:
        probe.close()
    text = render_text(report)
    if arguments.html is not None:
        write_bytes(arguments.html, render_page(report).encode(errors="replace"), durable=False)
    sys.stdout.write(json.dumps(report, allow_nan=False) + "\n" if arguments.json else text)
    if arguments.send:
        setup_logging(workspace, "reports")
        _file(workspace.status_dir / "reports", now.date(), text, render_page(report))
        taken = send(headline(report), text, webhook=settings.report.webhook, apprise_urls=settings.report.apprise)
        logger.info("report filed; %d receivers took it", taken)
    return 0


def _file(folder: Path, day: datetime.date, text: str, page: str) -> None:
    """Write the day's report and forget those older than a year. Raises StorageError."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("txt", text), ("html", page)):
        write_bytes(folder / f"{day:%Y-%m-%d}.{suffix}", content.encode(errors="replace"), durable=False)
    for old in sorted(folder.glob("????-??-??.*"))[: -2 * _KEEP_DAYS]:
        old.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
