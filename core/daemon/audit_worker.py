"""`python -m core.daemon.audit_worker --root ROOT`: audit every job that waits for it, then end (background child).

Reads    queue/<lane>/<job_id>/          Writes  status/audits/, status/row_index/: it is their one writer
Errors   a job that cannot be read gets an audit that says so; what the disk refuses ends the process, and the daemon
         starts it again later
Effects  lowest priority for CPU and disk: training does not wait for it. Oldest jobs first, so that a file is compared
         with all files before it
"""

import argparse
import logging
import os
import secrets
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import psutil

from core.daemon.pid_manager import die_with_parent
from core.errors import DataError, DropforgeError, MissingToolError, NotFoundError, StorageError
from core.job_queue import Job, JobQueue
from core.logs import setup_logging
from core.paths import Workspace
from core.settings import Settings, load_settings
from core.validation.audit import audit_job, note_unreadable
from core.validation.row_index import RowIndex
from core.verdicts import audited_jobs

logger = logging.getLogger(__name__)

_LOWEST = 19
_MOVES = 5  # a job passes through no more lanes while it is read


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of the contract."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m core.daemon.audit_worker", description="Audit what was let in.")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds config.json")
    options = parser.parse_args(argv)
    workspace = Workspace(options.root)
    setup_logging(workspace, "audits")
    _step_back()
    try:
        run(workspace, load_settings(workspace))
    except DropforgeError as error:
        logger.error("%s", error)
        return error.exit_code
    except OSError as error:
        logger.error("%s", error)
        return StorageError.exit_code
    return 0


def _step_back() -> None:
    """Whatever else wants the processor or the disk comes first."""
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    try:
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    except (psutil.Error, OSError) as error:  # some containers forbid it
        logger.info("the disk is not asked for its idle class: %s", error)


def run(workspace: Workspace, settings: Settings) -> None:
    """Audit until nothing waits for it. Raises StorageError, OSError of the disk."""
    workspace.audits_dir.mkdir(exist_ok=True)
    workspace.row_index_dir.mkdir(exist_ok=True)
    _make_room(workspace.audits_dir)
    index = RowIndex(workspace.row_index_dir)
    for folder in index.damaged:
        logger.warning("a part of the row index is damaged and is made again: %s", folder.name)
    index.repair()
    tried: set[str] = set()
    while jobs := [job for job in waiting_for_audit(workspace, index) if job.job_id not in tried]:
        for job in jobs:
            tried.add(job.job_id)
            _audit(job.job_id, workspace, settings, index)
        index.compact()


def _make_room(audits: Path) -> None:
    """A folder where an audit is to be written would end us again and again: it is kept under a hidden name."""
    for entry in audits.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            aside = audits / f".{entry.name}.{secrets.token_hex(3)}"
            logger.warning("a folder stands where an audit is to be written: it is now %s", aside)
            entry.rename(aside)


def waiting_for_audit(workspace: Workspace, index: RowIndex) -> list[Job]:
    """Jobs without an audit, or whose rows are not in the index, oldest first."""
    audited = audited_jobs(workspace) & index.job_ids
    return sorted((j for j in JobQueue(workspace).all_jobs() if j.job_id not in audited), key=lambda job: job.job_id)


def _audit(job_id: str, workspace: Workspace, settings: Settings, index: RowIndex) -> None:
    """Audit one job; it may move from lane to lane meanwhile."""
    queue = JobQueue(workspace)
    for _ in range(_MOVES):
        try:
            job = queue.find(job_id)
        except NotFoundError:
            logger.info("%s went back into the gates", job_id)
            return
        try:
            audit_job(job, workspace, settings, index)
            return
        except (DropforgeError, OSError) as error:
            if job.folder.is_dir():
                _give_up(job_id, error, workspace, index)
                return
        except Exception as error:  # noqa: BLE001  # the loop's edge: whatever a file does here, the next has its turn
            frames = "".join(traceback.format_tb(error.__traceback__)[-6:])  # no words of the error: no row
            logger.error("the audit of %s raised %s\n%s", job_id, type(error).__name__, frames)
            note_unreadable(job_id, f"the audit itself failed ({type(error).__name__})", workspace, index)
            return


def _give_up(job_id: str, error: DropforgeError | OSError, workspace: Workspace, index: RowIndex) -> None:
    """What the job's own rows cannot give is noted; the machine's trouble ends us, and the daemon starts us again."""
    if not isinstance(error, DataError | MissingToolError):
        raise error
    logger.warning("%s cannot be audited: %s", job_id, error)
    note_unreadable(job_id, error.message, workspace, index)


if __name__ == "__main__":
    sys.exit(main())
