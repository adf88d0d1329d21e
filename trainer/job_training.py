"""One job under training: from its folder to optimizer steps, resumable after each (arrow: queue -> trainer ->
checkpoints).

Reads    queue/active/<job_id>/           Writes  settings.json there: the configuration this job is trained with, to
         its end
Errors   ChangedAfterClaimError, DataError: the job cannot be trained; NonFiniteLossError naming lines of the file
Units    rows are row passes; lines count from 1
"""

import logging
import math
import time
from dataclasses import dataclass

from core.checkpoints import REPLAYED_EPOCH
from core.errors import DataError, NonFiniteLossError
from core.job_queue import Job
from core.settings import Settings
from trainer.data import JobRows
from trainer.engine import StepResult
from trainer.held_out_loss import is_exhausted, mean_loss
from trainer.memory import raise_if_out_of_memory
from trainer.packing import Row, pack
from trainer.run import Run
from trainer.spikes import is_spike
from trainer.state import JobProgress, Records

_NAMED_LINES = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of a job, for whoever shows it."""

    result: StepResult
    learning_rate: float
    seconds: float
    spiked: bool


class JobTraining:
    """The active job. Its state lives in the run's, so that a commit between any two steps holds all of it."""

    def __init__(
        self, run: Run, job: Job, settings: Settings, rows: JobRows, held_out: list[Row], progress: JobProgress
    ) -> None:
        """Args: settings: the job's own copy. progress: where to go on; the run's state takes it over."""
        if not len(rows):
            raise DataError("no row is left to train", where=progress.file, fix="add rows, or lower trainer.held_out")
        self.job = job
        self.settings = settings
        self.progress = progress
        self.held_out_loss: float | None = None
        self._run = run
        self._rows = rows
        self._held_out = held_out
        run.state.job = progress
        self.dials = run.dials(settings)
        run.engine_ready().adopt(self.dials)

    @property
    def finished(self) -> bool:
        return self.progress.finished

    @property
    def _whole_epochs(self) -> bool:
        """True when a step never reaches into the next epoch, because the job may end between them."""
        return bool(self._held_out) and self.settings.trainer.patience > 0

    @property
    def steps_done(self) -> int:
        return self._steps_to(self.progress.position)

    @property
    def steps(self) -> int:
        return self._steps_to(self._rows.rows_in_epoch * self.progress.epochs)

    def _steps_to(self, position: int) -> int:
        per_step, epoch_rows = self.dials.rows_per_step, self._rows.rows_in_epoch
        if not self._whole_epochs:
            return -(-position // per_step)
        epochs, rest = divmod(position, epoch_rows)
        return epochs * -(-epoch_rows // per_step) + -(-rest // per_step)

    @property
    def epoch(self) -> float:
        return round(self.progress.position / self._rows.rows_in_epoch, 4)

    def step(self) -> Step:
        """Take the next optimizer step.

        Raises:
            NonFiniteLossError: naming the lines; weights are as before the step.
            OutOfMemoryError: weights and moments may be half updated: go back to a commit.
        """
        began = time.monotonic()
        progress, state = self.progress, self._run.state
        rows, records = self.next_rows()
        rate = self.dials.rate_at(state.step, self.steps_done, self.steps)
        batches = pack(rows, self.dials.micro_batch_tokens)
        try:
            result = self._run.engine_ready().step(batches, rate)
        except NonFiniteLossError as error:
            raise self._named(error, rows, records) from error
        except (MemoryError, RuntimeError) as error:
            raise_if_out_of_memory(error)
            raise
        self._run.record(records)
        state.step += 1
        seconds = time.monotonic() - began
        self._advance(result, records, seconds)
        self._look_at_held_out(len(records))
        spiked = is_spike(progress, result.loss, self.settings.trainer.spike_factor)
        return Step(result, rate, seconds, spiked)

    def next_rows(self) -> tuple[list[Row], Records]:
        """The rows of the next optimizer step, without taking it."""
        position, epoch_rows = self.progress.position, self._rows.rows_in_epoch
        left = epoch_rows * self.progress.epochs - position
        if self._whole_epochs:
            left = epoch_rows - position % epoch_rows
        return self._rows.take(position, min(self.dials.rows_per_step, left))

    def _advance(self, result: StepResult, records: Records, seconds: float) -> None:
        progress = self.progress
        progress.position += len(records)
        progress.rows_trained += int((records["epoch"] != REPLAYED_EPOCH).sum())
        progress.tokens_trained += result.trained_tokens
        progress.seconds += seconds
        progress.loss_last = result.loss
        if progress.first_step is None:
            progress.first_step, progress.loss_first = self._run.state.step, result.loss

    def _look_at_held_out(self, just_trained: int) -> None:
        """After each epoch take the held-out loss; with patience, make this epoch the last when it has stopped falling.

        The loss goes into metrics.jsonl, where over-fitting shows; what is trained does not depend on it otherwise.
        """
        progress, trainer = self.progress, self.settings.trainer
        epochs = progress.position // self._rows.rows_in_epoch
        self.held_out_loss = None
        if not self._held_out or epochs == (progress.position - just_trained) // self._rows.rows_in_epoch:
            return
        loss = mean_loss(self._run.engine_ready(), self._held_out, self.dials.micro_batch_tokens)
        if loss is not None and not math.isfinite(loss):
            raise NonFiniteLossError(
                f"held-out loss {loss} after epoch {epochs}", where=progress.file, fix="lower the learning rate"
            )
        self.held_out_loss = loss
        if loss is None or not trainer.patience:
            return
        if is_exhausted(progress, loss, patience=trainer.patience, min_delta=trainer.min_delta):
            logger.info("the held-out loss has not fallen for %d epochs: %d were enough", trainer.patience, epochs)
            progress.epochs = epochs

    def _named(self, error: NonFiniteLossError, rows: list[Row], records: Records) -> NonFiniteLossError:
        """Find the lines whose own loss is not finite; all lines of the step when none is by itself."""
        engine = self._run.engine_ready()
        losses = [
            sum(float(engine.loss(b, scale=1.0, backward=False)) for b in pack([row], self.dials.micro_batch_tokens))
            for row in rows
        ]
        guilty = [int(r["row"]) + 1 for r, loss in zip(records, losses, strict=True) if loss - loss != 0]
        lines = guilty or [int(r["row"]) + 1 for r in records if r["epoch"] != REPLAYED_EPOCH]
        shown = ", ".join(map(str, sorted(lines)[:_NAMED_LINES])) + (" ..." if len(lines) > _NAMED_LINES else "")
        what = f"{error.message} at step {self._run.state.step + 1}"
        return NonFiniteLossError(what, where=f"{self.progress.file}, lines {shown}", fix=error.fix)
