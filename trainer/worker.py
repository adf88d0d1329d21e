"""The trainer's loop: orders first, then the active job, else the next one (arrow: queue -> trainer -> checkpoints).

Reads    status/orders.json, queue/{high,normal,low,active}/, the configuration before each job
Writes   verdicts in queue/active/, moves to done, failed, held or back; status/training_status.json, metrics.jsonl
Errors   StorageError and everything unexpected end the process: the newest commit is the truth, a restart goes on
         from it
Effects  everything that is done here can be done again: a crash between any two lines is mended by the next start
"""

import enum
import logging
from dataclasses import dataclass
from typing import Any  # manifests are JSON documents

from core.errors import (
    ConfigError,
    DataError,
    DropforgeError,
    ModelError,
    NonFiniteLossError,
    NotFoundError,
)
from core.job_queue import Job, JobQueue
from core.paths import Workspace, display_name
from core.settings import Settings, load_settings
from core.status import iso_now
from trainer.callbacks import Pace, StepLog, TrainingView
from trainer.data import ChangedAfterClaimError
from trainer.first_batch import write_first_batch
from trainer.job_training import JobTraining, Step
from trainer.memory import HALVINGS, OutOfMemoryError, release_unused
from trainer.opening import job_settings, keep_settings, open_job
from trainer.orders import Order, Orders
from trainer.run import Run
from trainer.spikes import STEPS_IN_A_ROW
from trainer.state import JobProgress

logger = logging.getLogger(__name__)


class Did(enum.Enum):
    """What one tick was."""

    WORK = enum.auto()
    NOTHING = enum.auto()
    STOP = enum.auto()


@dataclass(frozen=True, slots=True)
class Ending:
    """A job whose rows are all trained and whose last commit is being written."""

    job: Job
    progress: JobProgress


class Worker:
    """One trainer process. `tick` does one thing and returns; whoever drives it owns the clock."""

    def __init__(self, workspace: Workspace, settings: Settings, overrides: tuple[str, ...] = ()) -> None:
        self._workspace = workspace
        self._overrides = overrides
        self._queue = JobQueue(workspace)
        self.view = TrainingView(workspace, settings.run)
        self.view.show(status="starting")
        self._log = StepLog(workspace, settings.run)
        self._orders = Orders(workspace, self.view.acknowledged)
        self._training: JobTraining | None = None
        self._ending: Ending | None = None
        # A death is counted against the active job: one that may have died before gets its commit waited for, so that
        # what the next job does to the process can never be taken for its second death.
        self._inherited = {job.job_id for job in self._queue.jobs("active")}
        self._pace = Pace()
        self._stop_asked = False
        self._paused_for: str | None = None  # a loss spike, until the next order
        self.run = Run(workspace, settings, self._requeue)
        self.view.show(status="idle", current_step=self.run.state.step)

    def ask_to_stop(self) -> None:
        """Finish the step, commit, end. Safe in a signal handler: sets a flag."""
        self._stop_asked = True

    def tick(self) -> Did:
        """Obey an order, take an optimizer step, or take up a job."""
        self.run.look_at_commit()
        if self._ending is not None and not self.run.committing:
            self._settle()
        order = self._orders.look()
        if order is not None and self._obey(order) is Did.STOP:
            return Did.STOP
        if self._stop_asked:
            self._stop()
            return Did.STOP
        if self._orders.standing.paused or self._paused_for:
            self.view.beat(status="paused")
            return Did.NOTHING
        if self._training is None and not self._take_up():
            self.view.beat(status="idle", current_file=None, job_id=None, current_step=self.run.state.step)
            return Did.NOTHING
        if self._training is not None:
            self._train(self._training)
        return Did.WORK

    # -- orders ---------------------------------------------------------------------------------------------------

    def _obey(self, order: Order) -> Did:
        logger.info("order %d: %s", order.seq, order.command)
        self._paused_for = None
        if order.careful:
            self._take_least_memory()
        if order.command == "checkpoint":
            self._commit()
        elif order.command == "skip":
            self._skip(order)
        elif order.command == "rewind" and order.id is not None:
            self._rewind(order.id, hold=order.hold)
        elif order.paused and order.release_gpu:
            self._commit()
            self.run.release()
            self._training = None  # opened again from the commit
        elif order.command == "stop":
            self._stop()
        if order.paused:
            self.view.show(status="paused")
        self._orders.acknowledge(order)
        self.view.acknowledge(order.seq, self.run.state.step, self.run.head.id)
        return Did.STOP if order.command == "stop" else Did.WORK

    def _take_least_memory(self) -> None:
        """The kernel ended the trainer before this one: whatever is trained now gets the smallest micro-batches."""
        budget = self.run.dials(self.run.settings).default_micro_batch_tokens >> HALVINGS
        logger.warning("the last trainer was killed for want of memory: micro-batches of %d tokens from here", budget)
        self.run.state.micro_batch_tokens = budget

    def _stop(self) -> None:
        self._commit()
        self.view.show(status="stopped")

    def _skip(self, order: Order) -> None:
        self._settle()
        job = self._queue.active()
        if job is None or order.job_id not in (None, job.job_id):
            return  # it has ended meanwhile
        self._end_badly(job, "failed", "skipped", "skipped on request; its training was undone", None)

    def _rewind(self, checkpoint_id: str, *, hold: bool) -> None:
        """Take training back to a checkpoint; jobs trained since wait in their lane again, or in held/ for a person."""
        try:
            self.run.catalogue.get(checkpoint_id)
        except NotFoundError as error:
            logger.warning("not rewound: %s", error)
            return
        self._settle()
        active = self._queue.active()
        if active is not None:
            self._requeue({active.job_id})
        self._training = None
        self.run.go_back_to(checkpoint_id, self._hold if hold else self._requeue)

    # -- jobs -----------------------------------------------------------------------------------------------------

    def _take_up(self) -> bool:
        """Begin or go on with a job. False when there is none."""
        if self._ending is not None:
            if not self._begin_beside():
                self._settle()
            return True
        job = self._queue.active()
        standing = self.run.state.job
        if standing is not None and not standing.finished and (job is None or job.job_id != standing.job_id):
            logger.warning("job %s is half trained and not active any more: its training is undone", standing.job_id)
            self.run.forget_job(standing.job_id)
        job = job or self._queue.claim()
        if job is None:
            return False
        if (manifest := self.run.covering(job.job_id)) is not None:
            progress = self.run.progress_of(job.job_id) or JobProgress(**manifest["jobs"][-1])
            self._finish(Ending(job, progress), manifest)
            return True
        try:
            self._refresh_settings()
            self._begin(job, job_settings(job, self.run.settings))
        except ChangedAfterClaimError as error:
            self._end_badly(job, "held", error.slug, _without_fix(error), error.fix)
        except DataError as error:
            self._end_badly(job, "failed", error.slug, _without_fix(error), error.fix)
        return True

    def _begin_beside(self) -> bool:
        """Train the next job while the last commit of the one before is written.

        It stays in its lane until that commit is on the disk (`_settle`), so a crash in between finds it untouched and
        the job before it still active, and the two are trained in the same order again. False when there is nothing to
        begin, or nothing that may be begun without the commit.
        """
        waiting = self._queue.waiting()
        if self._ending is None or not waiting or self._ending.job.job_id in self._inherited:
            return False
        self._refresh_settings()
        job = waiting[0]
        try:
            settings = job_settings(job, self.run.settings)
            if settings.trainer.replay_ratio or self.run.covering(job.job_id) is not None:
                return False  # the rows of the job before are drawn from too, and it is in no manifest yet
            self._begin(job, settings)
        except DropforgeError as error:
            logger.debug("not begun before the commit: %s", error)  # the ordinary way says it to a person
            return False
        return True

    def _begin(self, job: Job, settings: Settings) -> None:
        self._training = open_job(self.run, job, settings)
        self._pace = Pace()
        name = display_name(self._training.progress.file)
        steps, taken = self._training.steps, self._training.steps_done
        self.view.show(
            **{"status": "training", "current_file": name, "job_id": job.job_id, "job_step": taken, "job_steps": steps},
            current_step=self.run.state.step,
            total_steps=self.run.state.step + steps - taken,  # the run's count, like current_step
            eta_s=None,  # what stands there is of the job before
        )
        logger.info("job %s: %s, %d steps", job.job_id, name, steps)
        about = {"job_id": job.job_id, "file": name, "max_length": settings.hyperparams.max_length}
        if not self._training.finished:
            write_first_batch(self._workspace, self.run.encoder, about, *self._training.next_rows())

    def _refresh_settings(self) -> None:
        """Take a valid change of the configuration; an invalid one is named and the last good settings stay."""
        try:
            settings = load_settings(self._workspace, self._overrides)
            self.run.adopt(settings)
        except (ConfigError, ModelError) as error:
            logger.error("config.json is not taken, the last good settings stay: %s", error)
            self.view.show(reason=str(error))
        else:
            self.view.show(reason=None)

    def _train(self, training: JobTraining) -> None:
        try:
            if not training.finished and self._show(training, training.step()).spiked:
                self._spiked(training)
                return
        except OutOfMemoryError as error:
            self._halve(training, error)
            return
        except NonFiniteLossError as error:
            self._end_badly(training.job, "failed", error.slug, _without_fix(error), error.fix)
            return
        every = training.settings.trainer.checkpoint_every_steps
        if training.finished or self.run.steps_since_commit >= every:
            self._begin_commit()

    def _begin_commit(self) -> None:
        """Commit where training stands, beside what follows; a job that is finished ends when that is written."""
        self._settle()
        self.run.begin_commit()
        training = self._training
        if training is not None and training.finished:
            self._ending, self._training = Ending(training.job, training.progress), None

    def _commit(self) -> None:
        self._settle()
        self.run.commit()

    def _settle(self) -> None:
        """Wait for the commit under way. The job that it ends is told and moved, and the next one, should it have been
        begun meanwhile, is claimed. Raises StorageError: the newest commit is the truth then, as after a crash."""
        self.run.settle()
        ending, self._ending = self._ending, None
        if ending is None:
            return
        self._finish(ending, self.run.head.manifest)
        begun = self._training
        if begun is None:
            return
        if begun.job.folder.is_dir():
            begun.job = self._queue.move(begun.job, "active")
            keep_settings(begun.job, begun.settings)
        else:
            logger.info("job %s was taken out of its lane after it had been begun: undone", begun.job.job_id)
            self._training = None
            self.run.reload()

    def _halve(self, training: JobTraining, error: OutOfMemoryError) -> None:
        """Go on from the newest commit with smaller micro-batches; the rows of an optimizer step stay the same."""
        budget = training.dials.micro_batch_tokens // 2
        if budget < training.dials.default_micro_batch_tokens >> HALVINGS:
            why = f"{error.message}, not even with micro-batches of {budget * 2} tokens"
            self._end_badly(training.job, "failed", error.slug, why, error.fix)
            return
        self._settle()
        self._training = None
        release_unused()
        self.run.reload()
        self.run.state.micro_batch_tokens = budget
        logger.warning("out of memory: from step %d on with micro-batches of %d tokens", self.run.state.step, budget)

    def _spiked(self, training: JobTraining) -> None:
        progress = training.progress
        what = f"the loss stands at {progress.loss_last:.3f} for {STEPS_IN_A_ROW} steps, more than "
        what += f"{training.settings.trainer.spike_factor:g} times the job's median"
        if training.settings.trainer.on_spike == "pause":
            progress.high_steps = 0
            self._paused_for = what
            self.view.show(status="paused", reason=f"{what}: resume goes on, skip undoes the job")
            logger.warning("paused: %s", what)
        else:
            self._end_badly(training.job, "failed", "loss_spike", what, "look at the file, or lower the learning rate")

    def _show(self, training: JobTraining, step: Step) -> Step:
        result, number = step.result, self.run.state.step
        self._pace.add(result.tokens, max(step.seconds, 1e-9))
        shown = {
            "loss": result.loss,
            "learning_rate": step.learning_rate,
            "epoch": training.epoch,
            "tokens_per_sec": self._pace.tokens_per_s,
        }
        held_out = {} if training.held_out_loss is None else {"validation_loss": training.held_out_loss}
        self._log.write(
            step=number,
            job_id=training.job.job_id,
            grad_norm=result.grad_norm,
            tokens=result.tokens,
            trained_tokens=result.trained_tokens,
            **shown,
            **held_out,
        )
        left = training.steps - training.steps_done
        steps = {"current_step": number, "job_step": training.steps_done}
        self.view.beat(status="training", eta_s=self._pace.eta_s(left), **steps, **shown)
        return step

    # -- ends -----------------------------------------------------------------------------------------------------

    def _finish(self, ending: Ending, manifest: dict[str, Any]) -> None:
        """Tell and move a job whose last row this commit covers; the commit may be older than a crash."""
        job, progress = ending.job, ending.progress
        verdict = job.verdict() | {
            "state": "done",
            "code": "ok",
            "training": progress.verdict_entry(manifest["step"]),
            "checkpoint": manifest["id"],
            "finished_at": iso_now(),
        }
        verdict["message"] = f"trained {progress.rows_trained} row passes in {progress.seconds:.1f} s"
        job.write_verdict(verdict)
        self._queue.move(job, "done")
        if self._training is None:
            self._show_idle()

    def _show_idle(self) -> None:
        self.view.show(status="idle", current_file=None, job_id=None, current_step=self.run.state.step)

    def _end_badly(self, job: Job, lane: str, code: str, message: str, fix: str | None) -> None:
        """Undo what was trained of a job, then tell and move it."""
        self._settle()
        self._training = None
        job = self._queue.find(job.job_id)  # begun in its lane, it has just been claimed, or was cancelled there
        if job.lane != "active":
            return
        self.run.forget_job(job.job_id)
        told = {"state": lane, "code": code, "message": message, "fix": fix or None, "finished_at": iso_now()}
        job.write_verdict(job.verdict() | told)
        self._queue.move(job, lane)
        logger.warning("job %s went to %s/: %s", job.job_id, lane, message)
        self._show_idle()

    def _requeue(self, job_ids: set[str]) -> None:
        """Put jobs whose training is about to be taken back into their lane again, as if never trained."""
        self._take_out(job_ids, "normal", state="queued", message="waits to be trained again")

    def _hold(self, job_ids: set[str]) -> None:
        """Put jobs that made the model worse where a person decides: again they would give the same weights."""
        told = {"state": "held", "code": "regressed", "fix": "dropforge retry JOB_ID trains it again"}
        what = "the model was worse after it; its training was taken back"
        self._take_out(job_ids, "held", **told, message=what, finished_at=iso_now())

    def _take_out(self, job_ids: set[str], lane: str, **told: str) -> None:
        untrained = {"training": None, "checkpoint": None, "finished_at": None, "effect": None, "served": False}
        for job_id in sorted(job_ids):
            try:
                job = self._queue.find(job_id)
            except NotFoundError:
                logger.error("job %s has no folder any more: it cannot be trained again", job_id)
                continue
            if job.lane in ("done", "active"):
                job.write_verdict(job.verdict() | untrained | told)
                self._queue.move(job, lane)


def _without_fix(error: DropforgeError) -> str:
    """Where and what, for a verdict, which has a field of its own for the fix."""
    return f"{error.where}: {error.message}" if error.where else error.message
