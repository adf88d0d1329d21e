"""`python -m inference --root ROOT`: the inference server (arrow: publisher -> inference server -> whoever asks).

Reads    config.json, models_dir          Writes  models_dir, status/logs/inference.jsonl
Errors   exit 2 for a refused configuration or a taken port, 4 for a disk that refuses
Effects  binds inference.host:inference.port; starts, and stays alive, with no model at all
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from core.daemon.pid_manager import PARENT_VARIABLE, die_with_parent
from core.errors import DropforgeError
from core.logs import setup_logging
from core.paths import Workspace, find_root
from core.settings import Settings, load_settings
from inference.app import Service, make_app
from inference.deploy import Deployer
from inference.guard import HostList, Keys
from inference.metrics import ServerMetrics
from inference.model_slot import Loader, pick_device
from inference.model_store import ModelStore
from inference.scheduler import Scheduler
from inference.server import SPARE_THREADS, Server, stop_event
from inference.slot_table import SlotTable

logger = logging.getLogger("inference")

_DRAIN_S = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM. Returns the exit code."""
    supervised = PARENT_VARIABLE in os.environ
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m inference", description="The inference server.")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args(argv)
    try:
        workspace = Workspace(find_root(options.root))
        settings = load_settings(workspace, options.overrides)
        setup_logging(workspace, "inference")
        return serve(workspace, settings, stop_event(ignore_sigint=supervised))
    except DropforgeError as error:
        sys.stderr.write(f"inference: {error}\n")
        return error.exit_code


def serve(workspace: Workspace, settings: Settings, stop: threading.Event) -> int:
    """Build everything, answer until `stop` is set, then let what is under way finish."""
    chosen, keys = settings.inference, Keys.from_environment()
    keys.check_bind(chosen.host)
    store = ModelStore(workspace.resolve(chosen.models_dir))
    store.make_folders()
    metrics = ServerMetrics()
    scheduler = Scheduler(max_streams=chosen.max_streams, max_waiting=chosen.max_queue, metrics=metrics)
    table = SlotTable(chosen.max_loaded)
    deployer = Deployer(store, table, scheduler, Loader(pick_device()), metrics)
    in_flight = chosen.max_streams + chosen.max_queue
    draining = threading.Event()
    service = Service(
        scheduler, table, deployer, metrics, keys, HostList([chosen.host, *chosen.allowed_hosts]), in_flight, draining
    )
    server = Server(make_app(service), chosen.host, chosen.port, in_flight + SPARE_THREADS)
    scheduler.start()
    server.start()
    logger.info("listening on http://%s:%d", chosen.host, chosen.port)
    deployer.start()
    stop.wait()
    draining.set()
    logger.info("finishing %d streams", scheduler.running)
    finished = scheduler.stop(_DRAIN_S)
    server.close()
    logger.info("stopped" if finished else "stopped with streams cut off")
    return 0


def _end(code: int) -> NoReturn:
    """End without tearing the interpreter down: native threads of torch and waitress may abort the process there."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())
