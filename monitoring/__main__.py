"""`python -m monitoring --root ROOT`: the monitor process; `dropforge monitor` is the same (beside all arrows).

Reads    the root          Effects  listens on monitor.ports until SIGTERM or SIGINT
Errors   exit 2 for a usage or configuration error (a taken port included), printed as one line
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from core.daemon.pid_manager import PARENT_VARIABLE, die_with_parent
from core.errors import DropforgeError
from core.gpu import NvmlProbe
from core.logs import setup_logging
from core.paths import Workspace, find_root
from core.settings import load_settings
from monitoring.api.aggregator import build_aggregator
from monitoring.api.events import Streams
from monitoring.app import create_app
from monitoring.guard import build_guard
from monitoring.server import open_sockets, serve

_log = logging.getLogger("monitoring")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the monitor in the foreground. Returns the exit code."""
    supervised = PARENT_VARIABLE in os.environ
    die_with_parent()
    arguments = _parser().parse_args(argv)
    try:
        return run(Workspace(find_root(arguments.root)), arguments.set, supervised=supervised)
    except DropforgeError as error:
        sys.stderr.write(f"monitor: {error}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m monitoring", description="The read-only page and API of a root.")
    parser.add_argument("--root", type=Path, help="the folder that holds config.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    return parser


def run(workspace: Workspace, overrides: Sequence[str], *, supervised: bool = False) -> int:
    """Build the parts and serve until a signal; Ctrl-C is the parent's to act on when `supervised`.

    Raises:
        ConfigError: it cannot start.
    """
    settings = load_settings(workspace, overrides)
    host = settings.monitor.host
    guard = build_guard(host, os.environ)
    sockets = open_sockets(host, settings.monitor.ports)
    setup_logging(workspace, "monitor")
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN if supervised else lambda *_: stopping.set())
    probe = NvmlProbe()
    streams = Streams(workspace, settings.run)
    app = create_app(build_aggregator(workspace, settings, probe), streams, guard)
    for port in (bound.getsockname()[1] for bound in sockets):
        _log.info("the page is at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
    try:
        serve(app, sockets, stopping, streams.end)
    finally:
        probe.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
