"""The loss on a job's held-out rows, and when it says that more epochs do not help (inside the trainer's arrow).

Reads    checkpoints/<run>/incoming/<job_id>.jsonl        Units   losses in nats a trained token
"""

import json
from typing import Protocol

from core.job_queue import Job
from core.paths import Workspace
from trainer.engine import Engine
from trainer.packing import Row, pack
from trainer.run import Run

_ROWS_READ = 200


class Patience(Protocol):
    """What early stopping remembers of a job."""

    best_held_out: float | None
    epochs_without_gain: int


def held_out_rows(run: Run, job: Job, workspace: Workspace, max_length: int) -> list[Row]:
    """The first held-out rows of a job, encoded as its training rows are; none when the gates kept none."""
    path = workspace.incoming_dir(run.catalogue.run) / f"{job.job_id}.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()[:_ROWS_READ]
    encoded = run.encoder.encode_rows([json.loads(line) for line in lines])
    return [Row(one.ids[:max_length], one.mask[:max_length]) for one in encoded]


def mean_loss(engine: Engine, rows: list[Row], budget_tokens: int) -> float | None:
    """Mean over the trained tokens of the rows, without gradients; None when they have none."""
    batches = pack(rows, budget_tokens)
    trained = sum(len(batch.trained_N) for batch in batches)
    if not trained:
        return None
    engine.model.eval()
    try:
        return sum(float(engine.loss(batch, scale=1 / trained, backward=False)) for batch in batches)
    finally:
        engine.model.train()


def is_exhausted(memory: Patience, loss: float, *, patience: int, min_delta: float) -> bool:
    """Take note of an epoch's held-out loss; True when it is the `patience`-th in a row that was no gain."""
    if memory.best_held_out is None or loss < memory.best_held_out - min_delta:
        memory.best_held_out, memory.epochs_without_gain = loss, 0
    else:
        memory.epochs_without_gain += 1
    return memory.epochs_without_gain >= patience
