"""One job under training: from its folder to optimizer steps, resumable after each (arrow: queue -> trainer ->
checkpoints).

Reads    queue/active/<job_id>/           Writes  settings.json there: the configuration this job is trained with, to
         its end
Errors   ChangedAfterClaimError, DataError: the job cannot be trained; NonFiniteLossError naming lines of the file
Units    rows are row passes; lines count from 1
"""

import time
from dataclasses import dataclass

from core.errors import DataError, NonFiniteLossError
from core.job_queue import Job
from core.settings import Settings
from trainer.data import JobRows
from trainer.engine import StepResult
from trainer.memory import raise_if_out_of_memory
from trainer.packing import Row, pack
from trainer.run import Run
from trainer.spikes import is_spike
from trainer.state import JobProgress, Records

_NAMED_LINES = 5


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of a job, for whoever shows it."""

    result: StepResult
    learning_rate: float
    seconds: float
    spiked: bool


class JobTraining:
    """The active job. Its state lives in the run's, so that a commit between any two steps holds all of it."""

    def __init__(self, run: Run, job: Job, settings: Settings, rows: JobRows, progress: JobProgress) -> None:
        """Args: settings: the job's own copy. progress: where to go on; the run's state takes it over."""
        if not len(rows):
            raise DataError("no row is left to train", where=progress.file, fix="add rows, or lower trainer.held_out")
        self.job = job
        self.settings = settings
        self.progress = progress
        self._run = run
        self._rows = rows
        run.state.job = progress
        self.dials = run.dials(settings)
        run.engine_ready().adopt(self.dials)

    @property
    def finished(self) -> bool:
        return self.progress.finished

    @property
    def steps_done(self) -> int:
        return -(-self.progress.rows_trained // self.dials.rows_per_step)

    @property
    def steps(self) -> int:
        return -(-self.progress.row_passes // self.dials.rows_per_step)

    @property
    def epoch(self) -> float:
        return round(self.progress.rows_trained / self.progress.rows_train, 4)

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
        self._advance(result, len(rows), seconds)
        spiked = is_spike(progress, result.loss, self.settings.trainer.spike_factor)
        return Step(result, rate, seconds, spiked)

    def next_rows(self) -> tuple[list[Row], Records]:
        """The rows of the next optimizer step, without taking it."""
        progress = self.progress
        count = min(self.dials.rows_per_step, progress.row_passes - progress.rows_trained)
        return self._rows.take(progress.rows_trained, count)

    def _advance(self, result: StepResult, rows: int, seconds: float) -> None:
        progress = self.progress
        progress.rows_trained += rows
        progress.tokens_trained += result.trained_tokens
        progress.seconds += seconds
        progress.loss_last = result.loss
        if progress.first_step is None:
            progress.first_step, progress.loss_first = self._run.state.step, result.loss

    def _named(self, error: NonFiniteLossError, rows: list[Row], records: Records) -> NonFiniteLossError:
        """Find the lines whose own loss is not finite; all lines of the step when none is by itself."""
        engine = self._run.engine_ready()
        losses = [
            sum(float(engine.loss(b, scale=1.0, backward=False)) for b in pack([row], self.dials.micro_batch_tokens))
            for row in rows
        ]
        guilty = [int(r["row"]) + 1 for r, loss in zip(records, losses, strict=True) if loss - loss != 0]
        lines = guilty or [int(r["row"]) + 1 for r in records]
        shown = ", ".join(map(str, sorted(lines)[:_NAMED_LINES])) + (" ..." if len(lines) > _NAMED_LINES else "")
        what = f"{error.message} at step {self._run.state.step + 1}"
        return NonFiniteLossError(what, where=f"{self.progress.file}, lines {shown}", fix=error.fix)
