"""What a run lost while no trainer looked is mended before it is opened (arrow: checkpoints -> trainer).

Reads    checkpoints/<run>/, the verdicts in queue/done/
Writes   checkpoints/.incomplete/ and .undone/ (what is taken out of the run); checkpoints/<run>/manifests/ (copies)
Errors   StorageError; nothing that is lost is an error here, each loss is a line in the log
Effects  a lost checkpoint whose copies stand counts as one whose weights were removed. Without a copy nobody knows
         what it held: all that was trained on top of it is taken back, and its jobs and theirs are queued again
"""

import logging
from collections.abc import Callable

from core.checkpoints import Catalogue
from core.errors import JsonError, StorageError
from core.job_queue import Job, JobQueue
from core.paths import Workspace
from trainer.snapshot import jobs_recorded

OnLost = Callable[[set[str]], None]  # told the ids of jobs before their commits are taken back
logger = logging.getLogger(__name__)


def set_broken_aside(catalogue: Catalogue, on_lost: OnLost) -> None:
    """Move what is called a checkpoint and is none into .incomplete/."""
    copied = {f"checkpoint-{manifest['step']}" for manifest in catalogue.copies.manifests()}
    for folder in catalogue.broken():
        if folder.name not in copied:
            on_lost(jobs_recorded(folder))
    for folder in catalogue.set_aside_broken():
        jobs = ", ".join(sorted(jobs_recorded(folder)))
        logger.error("no whole checkpoint, set aside: %s; jobs in it: %s", folder, jobs or "?")


def lost_base(catalogue: Catalogue) -> str | None:
    """The id of the base when its folder is gone and a manifest still names it; None otherwise."""
    if any(checkpoint.parent is None for checkpoint in catalogue.whole()):
        return None
    known = {m["id"]: m["parent"] for m in catalogue.known()}
    named = [*known, *(parent for parent in known.values() if parent)]
    return next((name for name in named if name.startswith("0-")), None)


def take_back_cut_off(catalogue: Catalogue, workspace: Workspace, on_lost: OnLost) -> None:
    """End the chain before a gap that no copy bridges; whatever was trained there or later is queued again."""
    cut_off = catalogue.cut_off()
    if not cut_off:
        return
    ids = {manifest["id"] for manifest in cut_off}
    missing = {manifest["parent"] for manifest in cut_off} - ids
    lost = {job["job_id"] for manifest in cut_off for job in manifest["jobs"]} | _jobs_ended_by(missing, workspace)
    logger.error(
        "no manifest and no copy of %s: %s are taken back; trained again: %s",
        *(", ".join(sorted(names)) for names in (missing, ids, lost)),
    )
    on_lost(lost)
    catalogue.take_back_cut_off()


def _jobs_ended_by(checkpoints: set[str], workspace: Workspace) -> set[str]:
    """The finished jobs whose last row is in one of these checkpoints, as their verdicts say."""
    return {job.job_id for job in JobQueue(workspace).jobs("done") if _covered_by(job) in checkpoints}


def _covered_by(job: Job) -> str | None:
    try:
        return job.verdict().get("checkpoint")
    except (JsonError, StorageError):
        return None
