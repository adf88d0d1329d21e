"""The memory estimate of core.memory_estimate against measured peaks.

    python -m scripts.bench.memory [--model small m30 tiny] [--lora]

Trains two full optimizer steps and takes a snapshot, as a commit does, in a process of its own, and prints the
estimate beside the kernel's own peak (ru_maxrss), with the error in per cent. Then what a step must hold, counted on
the tensors themselves (weights, gradients, moments, everything autograd saves for the backward pass of the fullest
micro-batch, one snapshot), and how many times that the process took beyond what it took before there was a model.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch
from transformers import Qwen3ForCausalLM

from core.memory_estimate import needed, shape_of
from core.settings import settings_from
from scripts.bench.train import ENVIRONMENT, dials, make_model, make_rows
from scripts.bench.train_peers import ROWS_A_STEP
from trainer.engine import Engine
from trainer.models.lora import add_adapter
from trainer.models.tiny import tiny_config
from trainer.packing import MicroBatch, pack
from trainer.snapshot import take
from trainer.state import RECORD_DTYPE, TrainState

MICRO_BATCH = 4096


def run_one(name: str, method: str) -> dict[str, float]:
    """Train in this process. Returns bytes: estimated, measured."""
    before = psutil.Process().memory_info().rss
    model = Qwen3ForCausalLM(tiny_config()) if name == "tiny" else make_model(name)
    document = {"hyperparams": {"batch_size": 64}, "trainer": {"method": method}}
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        shape = shape_of(Path(folder))
    need = needed(shape, settings_from(document, "bench"), micro_batch_tokens=MICRO_BATCH)
    rows = make_rows(128, model.config.vocab_size, seed=0)
    adapted = add_adapter(model, rank=16, seed=0, base_folder=Path("base")) if method == "lora" else model
    engine = Engine(adapted, dials(MICRO_BATCH))
    steps = [pack(rows[start : start + 8 * ROWS_A_STEP], MICRO_BATCH) for start in (0, 8 * ROWS_A_STEP)]
    for step in steps:
        engine.step(step, 1e-3)
    copy = take(engine, TrainState(method), torch.zeros(0).numpy().astype(RECORD_DTYPE))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = [*engine.model.parameters(), *(p.grad for p in engine.trainable.values() if p.grad is not None)]
    held += [*engine.optimizer_tensors().values(), *copy.weights.values(), *copy.optimizer.values()]
    must = sum(tensor.nbytes for tensor in held) + max(saved_bytes(engine, batch) for step in steps for batch in step)
    return {"estimated": need.total, "measured": peak, "must": must, "before": before}


def saved_bytes(engine: Engine, batch: MicroBatch) -> int:
    """Bytes of all that autograd keeps of a forward pass beside the model's own weights, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in engine.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        engine.loss(batch, scale=1.0)
    return sum(kept.values())


def main() -> int:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=["tiny", "small", "m30"])
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    method = "lora" if options.lora else "full"
    if options.one:
        print(json.dumps(run_one(options.one, method)))
        return 0
    for name in options.model:
        argv = [sys.executable, "-m", "scripts.bench.memory", "--one", name, *(["--lora"] if options.lora else [])]
        done = subprocess.run(argv, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        error = found["estimated"] / found["measured"] - 1
        estimated, peak = found["estimated"] / 1e6, found["measured"] / 1e6
        print(f"{name} {method}: estimated {estimated:.0f} MB, peak {peak:.0f} MB, {error:+.0%}")
        taken = found["measured"] - found["before"]
        print(f"  must hold {found['must'] / 1e6:.0f} MB, took {taken / 1e6:.0f} MB = {taken / found['must']:.2f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
