"""Where training stands, as it travels in a checkpoint's state.json (arrow: trainer -> checkpoints).

Format   state.v1, plain JSON; together with the tensors of a checkpoint it is everything the next step depends on
Units    steps are optimizer steps of the run; rows are row passes; seconds of wall clock
"""

import dataclasses
from dataclasses import dataclass
from typing import Any  # JSON documents

import numpy as np
import numpy.typing as npt

from core.errors import CheckpointError

SCHEMA = "state.v1"
# One row pass: which job, which row of its file (from 0), which epoch (from 0), first 16 bytes of the row's SHA-256.
RECORD_DTYPE = np.dtype([("job", "S32"), ("row", "<u4"), ("epoch", "<u2"), ("hash", "S16")])
Records = npt.NDArray[np.void]


@dataclass(slots=True)
class JobProgress:
    """How far one job has been trained."""

    job_id: str
    file: str
    sha256: str
    generator: str
    rows_train: int
    epochs: int
    rows_trained: int = 0  # passes of its own rows
    position: int = 0  # passes taken, replayed rows of earlier jobs included
    first_step: int | None = None
    tokens_trained: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    seconds: float = 0.0
    recent_losses: list[float] = dataclasses.field(default_factory=list)  # see trainer.spikes
    high_steps: int = 0
    best_held_out: float | None = None  # see trainer.held_out_loss
    epochs_without_gain: int = 0

    @property
    def row_passes(self) -> int:
        return self.rows_train * self.epochs

    @property
    def finished(self) -> bool:
        return self.rows_trained == self.row_passes

    def manifest_entry(self) -> dict[str, Any]:
        """This job's line in a manifest."""
        names = ("job_id", "file", "sha256", "generator", "rows_train", "rows_trained", "epochs")
        return {name: getattr(self, name) for name in names}

    def verdict_entry(self, last_step: int) -> dict[str, Any]:
        """The `training` part of a verdict."""
        return {
            "first_step": self.first_step,
            "last_step": last_step,
            "rows_trained": self.rows_trained,
            "tokens_trained": self.tokens_trained,
            "loss_first": self.loss_first,
            "loss_last": self.loss_last,
            "seconds": round(self.seconds, 3),
        }


@dataclass(slots=True)
class TrainState:
    """How far the run has been trained. `method` is the one its weights were made with."""

    method: str
    auto_precision: str = "fp32"  # what fp_precision `auto` came to on a CPU when the run began
    step: int = 0
    micro_batch_tokens: int | None = None  # what out-of-memory errors have left; None: the default
    job: JobProgress | None = None

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def state_from(document: dict[str, Any], where: str) -> TrainState:
    """Read what `as_json` wrote. Raises CheckpointError naming `where`."""
    fields = dict(document)
    if fields.pop("schema", None) != SCHEMA:
        raise CheckpointError(f"not a {SCHEMA} document", where=where, fix="dropforge rewind to an older checkpoint")
    try:
        job = fields.pop("job")
        return TrainState(**fields, job=JobProgress(**job) if job else None)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"unknown shape: {error}", where=where, fix="dropforge rewind to an older one") from error
