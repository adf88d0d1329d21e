"""`python -m trainer --root ROOT`: the one process that trains (arrow: queue -> trainer -> checkpoints).

Exit codes: 0 after `stop` or SIGTERM; 2 settings refused (edit config.json first); 4 storage; 1 anything else.
Weights are those of the newest commit whatever the code.
"""

import argparse
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core.daemon.pid_manager import die_with_parent
from core.errors import ConfigError, DropforgeError, MissingToolError, ModelError, StorageError
from core.logs import setup_logging
from core.paths import Workspace, find_root
from core.settings import load_settings
from core.status import iso_now, read_status, write_status
from trainer.worker import Did, Worker

logger = logging.getLogger("trainer")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, train until told to stop. Returns the exit code."""
    die_with_parent()
    faulthandler.enable()  # SIGABRT from a daemon that finds us hanging leaves every stack in its log
    arguments = _parser().parse_args(argv)
    try:
        workspace = Workspace(find_root(arguments.root))
    except DropforgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    setup_logging(workspace, "trainer")
    try:
        worker = Worker(workspace, load_settings(workspace, arguments.set), tuple(arguments.set))
        signal.signal(signal.SIGTERM, lambda _signal, _frame: worker.ask_to_stop())
        return drive(worker)
    except DropforgeError as error:
        logger.error("%s", error)
        _show_end(workspace, error)
        return exit_code_of(error)


def drive(worker: Worker, idle_s: float = 0.1) -> int:
    """Tick until told to stop. Returns the exit code."""
    while (did := worker.tick()) is not Did.STOP:
        if did is Did.NOTHING:
            time.sleep(idle_s)
    return 0


def exit_code_of(error: DropforgeError) -> int:
    """Exit code of an error that ends the trainer: 2 when only an operator can mend it, 4 for storage, else 1."""
    if isinstance(error, StorageError):
        return error.exit_code
    return ConfigError.exit_code if isinstance(error, ConfigError | ModelError | MissingToolError) else 1


def _show_end(workspace: Workspace, error: DropforgeError) -> None:
    """Leave the reason where the monitor looks."""
    path = workspace.status_file("training_status.json")
    document = read_status(path)
    if document is not None:
        write_status(
            path, {**document, "status": "blocked", "pid": os.getpid(), "reason": str(error), "heartbeat": iso_now()}
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train what waits in queue/.")
    parser.add_argument("--root", type=Path, help="folder that holds config.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, the strongest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
