"""How long a checkpoint stops training: our snapshot beside transformers' `_save_checkpoint`, on the 30 M model.

    python -m scripts.bench.commit [--rounds 3]

Ours: milliseconds until the next optimizer step may begin (a copy in memory), and until the commit with hashes and
fsync is on the disk, in a thread, while steps go on. Theirs: the whole save, weights and optimizer, no fsync.
Interleaved; both models are warm. Also: seconds from a 1,000-row file in the queue to its first optimizer step in a
trainer that is warm.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainingArguments

from core.atomic import fsync_tree, sha256_file
from core.checkpoints import Checkpoint
from scripts.bench.train import dials, make_model, make_rows
from scripts.bench.train_peers import ROWS_A_STEP, examples_of, pad, trainer_arguments
from scripts.reliability.training_farm import TrainingFarm, chats, tick_until_step
from trainer import snapshot
from trainer.commits import BackgroundCommit
from trainer.engine import Engine
from trainer.packing import pack
from trainer.state import RECORD_DTYPE, TrainState


def ours(engine: Engine, rows: list[Any], folder: Path) -> tuple[float, float, float]:
    """Seconds: training stopped, commit on the disk, slowest step meanwhile."""
    began = time.perf_counter()
    copy = snapshot.take(engine, TrainState("full"), np.zeros(0, RECORD_DTYPE))
    stopped = time.perf_counter() - began
    base = Checkpoint(folder, {"files": {}})

    def write() -> Checkpoint:
        snapshot.write(copy, folder, base)
        for file in folder.iterdir():
            sha256_file(file)
        fsync_tree(folder)
        return Checkpoint(folder, {"id": "bench", "step": 0})

    commit, slowest = BackgroundCommit(write), 0.0
    while not commit.settled:
        step = time.perf_counter()
        engine.step(pack(rows[:ROWS_A_STEP], 4096), 1e-3)
        slowest = max(slowest, time.perf_counter() - step)
    commit.result()
    return stopped, time.perf_counter() - began, slowest


def their_trainer(folder: Path) -> Trainer:
    model = make_model("m30")
    arguments = TrainingArguments(**trainer_arguments(output_dir=str(folder), max_steps=1, remove_unused_columns=False))
    trainer = Trainer(model, arguments, pad, examples_of(make_rows(ROWS_A_STEP, model.config.vocab_size, 0)))
    trainer.train()
    return trainer


def theirs(trainer: Trainer) -> float:
    began = time.perf_counter()
    trainer._save_checkpoint(trainer.model, None)
    return time.perf_counter() - began


def warm_start(folder: Path) -> float:
    """Seconds from a file in the queue to its first optimizer step, the trainer having trained one before."""
    farm = TrainingFarm(folder, hyperparams={"epochs": 1})
    farm.drop(chats(8))
    worker = farm.train()
    farm.drop(chats(1000, first=100), "more.jsonl")
    began = time.perf_counter()
    tick_until_step(worker, worker.run.state.step + 1)
    return time.perf_counter() - began


def main() -> int:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model("m30")
        rows = make_rows(ROWS_A_STEP, model.config.vocab_size, 0)
        engine, trainer = Engine(model, dials()), their_trainer(folder / "theirs")
        engine.step(pack(rows, 4096), 1e-3)
        mine, other = [], []
        for number in range(rounds + 1):
            (folder / f"ours-{number}").mkdir()
            mine.append(ours(engine, rows, folder / f"ours-{number}"))
            other.append(theirs(trainer))
        stopped, durable, slowest = (1000 * statistics.median(values) for values in zip(*mine[1:], strict=True))
        saved = 1000 * statistics.median(other[1:])
        print(
            f"ours: training stops {stopped:.0f} ms; on the disk after {durable:.0f} ms, slowest step {slowest:.0f} ms"
        )
        print(f"transformers: {saved:.0f} ms = {saved / stopped:.1f} x")
        print(f"warm trainer, file of 1,000 rows: first step after {warm_start(folder / 'farm'):.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
