"""`python -m core.daemon --root ROOT`: build the daemon by hand and run it (all arrows start here).

Errors   exit 0 clean, 2 configuration, 3 already running, 4 storage; one line on stderr names the cause
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core.atomic import storage_error
from core.daemon.audits import Audits
from core.daemon.background_worker import BackgroundWorker
from core.daemon.catalogue_view import CatalogueView
from core.daemon.children import Children
from core.daemon.claims import ClaimDesk
from core.daemon.config_watch import ConfigWatch
from core.daemon.context import Context
from core.daemon.control_files import Control
from core.daemon.deployment import DeploymentPoller, DeploymentView
from core.daemon.disk_guard import DiskGuard
from core.daemon.events import EventLog
from core.daemon.file_watcher import FileWatcher
from core.daemon.gating import Gating
from core.daemon.heartbeat import Heartbeat
from core.daemon.inbox_guard import InboxGuard, check_same_filesystem
from core.daemon.intake import Intake
from core.daemon.judging import Judging
from core.daemon.ledger_feed import LedgerFeed
from core.daemon.loop import Daemon, Parts, name_unbuilt, run
from core.daemon.orders import OrderBook
from core.daemon.outcomes import Outcomes, finish_moves
from core.daemon.pid_manager import PARENT_VARIABLE, InstanceLock, die_with_parent
from core.daemon.progress_events import ProgressEvents
from core.daemon.request_actions import RequestActions
from core.daemon.signals import Signals
from core.daemon.snapshot_service import SnapshotService
from core.daemon.supervisor import Supervisor
from core.daemon.trainer_keeper import TrainerKeeper
from core.daemon.training_view import TrainingView
from core.daemon.wakeup import Wakeup
from core.errors import DropforgeError, ResourceError
from core.formats import SUFFIXES
from core.hosts import serving_url
from core.job_queue import JobQueue
from core.logs import setup_logging
from core.paths import Workspace, find_root

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground. Returns the exit code of the contract."""
    supervised = PARENT_VARIABLE in os.environ
    die_with_parent()
    options = _options(argv)
    try:
        workspace = Workspace(find_root(options.root))
        context = _context(workspace, options.set)
        setup_logging(workspace, "daemon")
        lock = InstanceLock.acquire(workspace.lock_file)
        _prepare(context)
        return _run(context, options, lock.fd, supervised=supervised)
    except DropforgeError as error:
        return _end(error)
    except OSError as error:
        return _end(storage_error(error, Path(str(error.filename or options.root or "."))))


def _end(error: DropforgeError) -> int:
    print(f"dropforge daemon: {error}", file=sys.stderr)  # noqa: T201  # the one line a person reads
    return error.exit_code


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m core.daemon", description="Take files in, train on them.")
    parser.add_argument("--root", type=Path, help="folder that holds config.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--exit-when-idle", action="store_true", help="end when nothing is left to do")
    parser.add_argument("--intake-only", action="store_true", help="check and queue files, start no trainer")
    parser.add_argument(
        "--server-grace-s", type=float, default=10.0, help="how long to wait for the inference server to answer"
    )
    return parser.parse_args(argv)


def _context(workspace: Workspace, overrides: Sequence[str]) -> Context:
    config = ConfigWatch(workspace, overrides)
    workspace.make_folders()
    return Context(workspace, config, JobQueue(workspace), EventLog(workspace), Wakeup())


def _prepare(context: Context) -> None:
    """What must be in order before anything runs. We hold the lock, so no trainer lives."""
    check_same_filesystem(context.workspace)
    context.config.keep_copy()
    for job_id in finish_moves(context.queue):
        context.events.emit("job_finished_late", "its verdict was final, its move was not", job_id=job_id)
    for job_id in ClaimDesk(context.workspace, context.queue).take_back_from_other_runs(context.run):
        context.events.emit("job_checked_again", f"it was let in for a run other than {context.run}", job_id=job_id)
    name_unbuilt(context)


def _run(context: Context, options: argparse.Namespace, lock_fd: int, *, supervised: bool) -> int:
    parts, worker, poller = build(context, options, lock_fd)
    parts.signals.install(context.wakeup, ignore_sigint=supervised)
    parts.control.start_clean()
    parts.snapshots.start_clean()
    poller.start()
    context.events.emit("started", "the daemon is up", root=str(context.workspace.root))
    try:
        daemon = Daemon(parts, exit_when_idle=options.exit_when_idle)
        run(daemon, context)
    finally:
        parts.children.supervisor.kill_all()
        worker.stop()
        poller.stop()
    if daemon.gave_up is not None:
        raise ResourceError(f"nothing can be trained: {daemon.gave_up}", fix="dropforge doctor; dropforge status")
    return 0


def build(
    context: Context, options: argparse.Namespace, lock_fd: int | None
) -> tuple[Parts, BackgroundWorker, DeploymentPoller]:
    """Every object of the daemon, made once and joined by hand."""
    workspace, wake = context.workspace, context.wakeup.set
    worker = BackgroundWorker(wake)
    poller = DeploymentPoller(serving_url(workspace, context.settings), wake)
    training = TrainingView(workspace)
    orders = OrderBook(workspace, training)
    view = CatalogueView(workspace, context.run)
    view.refresh()
    deployment = DeploymentView(context, poller)
    children = Children(workspace, context.config.overrides, Supervisor())
    desk = ClaimDesk(workspace, context.queue)
    intake = Intake(context, desk, Gating(workspace.root, worker), SUFFIXES, time.monotonic)
    judging = Judging(context, children, view, deployment, orders, grace_s=options.server_grace_s)
    requests = RequestActions(context, orders, intake, judging)
    watched = (workspace.inbox, workspace.inbox / "high", workspace.inbox / "low", workspace.control_dir)
    ledger = LedgerFeed(context)
    trainer = None
    if not options.intake_only:
        trainer = TrainerKeeper(context, children, orders, training, view, lock_fd=lock_fd)
    parts = Parts(
        context=context,
        signals=Signals(),
        watcher=FileWatcher(watched, wake),
        inbox_guard=InboxGuard(context),
        intake=intake,
        control=Control(context, orders, requests.table()),
        orders=orders,
        training=training,
        view=view,
        deployment=deployment,
        children=children,
        trainer=trainer,
        judging=judging,
        outcomes=Outcomes(context, view, deployment, judging, ledger.touch),
        snapshots=SnapshotService(context, view, deployment, judging.wanted),
        disk=DiskGuard(context, orders),
        ledger=ledger,
        progress=ProgressEvents(context, view),
        heartbeat=Heartbeat(context),
        audits=Audits(context, children, ledger.touch),
    )
    return parts, worker, poller


if __name__ == "__main__":
    sys.exit(main())
