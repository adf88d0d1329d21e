"""From a job folder to a job under training: its settings, its bytes checked again, its rows (arrow: queue -> trainer).

Reads    queue/active/<job_id>/         Writes  settings.json and, when missing or stale, tokens/ in it
Errors   ChangedAfterClaimError when the data is not what passed the gates; DataError, ConfigError
"""

from core.atomic import sha256_file, write_json
from core.errors import DataError, StorageError
from core.job_queue import Job
from core.lineage import read_sidecar
from core.settings import Settings, load_job_settings
from core.validation import token_cache_of
from trainer.data import ChangedAfterClaimError, JobRows
from trainer.held_out_loss import held_out_rows
from trainer.job_training import JobTraining
from trainer.replay import pool_for
from trainer.run import Run
from trainer.state import JobProgress


def job_settings(job: Job, current: Settings) -> Settings:
    """The job's own copy of the configuration; a job in `active` gets one now when it has none. Raises ConfigError."""
    if job.lane == "active":
        keep_settings(job, current)
    return load_job_settings(job.settings_file) if job.settings_file.is_file() else current


def keep_settings(job: Job, settings: Settings) -> None:
    """Write a job's own copy of the configuration, unless it has one. Raises StorageError."""
    if not job.settings_file.is_file():
        write_json(job.settings_file, settings.raw)


def open_job(run: Run, job: Job, settings: Settings) -> JobTraining:
    """Make a job ready for its next step: from its first row, or from where the run's newest commit stands in it.

    Raises:
        ChangedAfterClaimError: the file's bytes are not those that were checked.
        DataError: it holds no training row, or not those of its verdict.
    """
    verdict = job.verdict()
    _refuse_changed(job, verdict["sha256"])
    cache = token_cache_of(job, settings, run.workspace, run.encoder)
    if len(cache) != verdict["rows_train"]:
        what = f"{len(cache)} training rows, the verdict says {verdict['rows_train']}"
        fix = f"dropforge retry {job.job_id}: the gates count the rows again"
        raise DataError(what, where=verdict["file"], fix=fix)
    trainer = settings.trainer
    rows = JobRows(
        job.job_id,
        cache,
        sha256=verdict["sha256"],
        seed=trainer.seed,
        pool=pool_for(run, job, settings),
        replay_ratio=trainer.replay_ratio,
    )
    # After a single epoch the judge takes it anyway.
    watched = trainer.patience > 0 or settings.hyperparams.epochs > 1
    held_out = held_out_rows(run, job, run.workspace, settings.hyperparams.max_length) if watched else []
    fresh = JobProgress(
        job_id=job.job_id,
        file=verdict["file"],
        sha256=verdict["sha256"],
        generator=_generator(job),
        rows_train=len(rows),
        epochs=settings.hyperparams.epochs,
    )
    return JobTraining(run, job, settings, rows, held_out, run.progress_of(job.job_id) or fresh)


def _generator(job: Job) -> str:
    """`id@version` of who made the file, as the sidecar says; `manual` without one."""
    return read_sidecar(job.sidecar_file).generator


def _refuse_changed(job: Job, checked: str) -> None:
    try:
        found = sha256_file(job.data_file)
    except (OSError, StorageError) as error:
        raise DataError(f"the data file cannot be read: {error}", where=str(job.folder)) from error
    if found != checked:
        raise ChangedAfterClaimError(
            f"the file has changed since it was checked (sha256 {found[:12]}, checked {checked[:12]})",
            where=job.data_file.name,
            fix="close the program that still writes it, then drop the file again",
        )
