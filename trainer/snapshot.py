"""One consistent copy of everything a resume needs, and its files in a checkpoint (arrow: trainer -> checkpoints).

Writes   into a staged folder: model.safetensors (or adapter_model.safetensors, adapter_config.json), the base's config,
         tokenizer and template; for resume only: optimizer.safetensors, rng.safetensors, state.json,
         trained_rows.npy. No pickle.
Reads    the same        Errors   CheckpointError for a checkpoint that does not fit; StorageError when the disk refuses
Effects  none beyond the staged folder; the commit itself (fsync, manifest, rename) is core.checkpoints'
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON documents

import numpy as np
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.atomic import read_json, write_bytes, write_json
from core.checkpoints import REPLAYED_EPOCH, TRAINED_ROWS_FILE, WEIGHTS_SUFFIX, Checkpoint
from trainer.engine import Engine, random_state, restore_random_state
from trainer.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_tensors, load_adapter
from trainer.models.save import MODEL_WEIGHTS, disk_errors, load_weights, model_tensors, readable
from trainer.state import Records, TrainState, state_from

OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "rng.safetensors"
STATE_FILE = "state.json"
MODEL_CONFIG = "config.json"
_FOR_TORCH = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies in memory: training may go on while they are written."""

    weights: dict[str, Tensor]
    adapter_config: dict[str, Any] | None
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    state: dict[str, Any]
    records: Records


def take(engine: Engine, state: TrainState, records: Records) -> Snapshot:
    """Copy the state of training. Costs one pass over weights and moments in memory, nothing on disk."""
    model = engine.model
    adapted = isinstance(model, PeftModel)
    weights = adapter_tensors(model) if isinstance(model, PeftModel) else model_tensors(model)
    return Snapshot(
        weights=_copies(weights),
        adapter_config=adapter_document(model) if adapted else None,
        optimizer=_copies(engine.optimizer_tensors()),
        random=random_state(),
        state=state.as_json(),
        records=records,
    )


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def adapter_document(model: Any) -> dict[str, Any]:  # a PeftModel, whose attributes are untyped
    """adapter_config.json as peft writes it, in an order that does not change from process to process."""
    document = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in document.items()}


def write(snapshot: Snapshot, staged: Path, base: Checkpoint) -> None:
    """Write a snapshot's files into a staged folder. Raises StorageError."""
    with disk_errors(staged):
        adapted = snapshot.adapter_config is not None
        for name in base.manifest["files"]:
            # With config.json transformers takes an adapter's folder for a whole model; without, it finds the base.
            if not name.endswith(WEIGHTS_SUFFIX) and not (adapted and name == MODEL_CONFIG):
                shutil.copyfile(base.folder / name, staged / name)
        name = ADAPTER_WEIGHTS if adapted else MODEL_WEIGHTS
        save_file(snapshot.weights, staged / name, metadata=_FOR_TORCH)
        if adapted:
            write_json(staged / ADAPTER_CONFIG, snapshot.adapter_config, durable=False)
    write_resume_files(snapshot, staged)


def write_resume_files(snapshot: Snapshot, staged: Path) -> None:
    """Write what only a resume needs. Raises StorageError."""
    with disk_errors(staged):
        save_file(snapshot.optimizer, staged / OPTIMIZER_FILE, metadata=_FOR_TORCH)
        save_file(snapshot.random, staged / RANDOM_FILE, metadata=_FOR_TORCH)
    write_json(staged / STATE_FILE, snapshot.state, durable=False)
    buffer = io.BytesIO()
    np.save(buffer, snapshot.records, allow_pickle=False)
    write_bytes(staged / TRAINED_ROWS_FILE, buffer.getvalue(), durable=False)


def jobs_recorded(folder: Path) -> set[str]:
    """The jobs whose rows a checkpoint without a manifest holds, by its own record; empty when that is damaged too."""
    try:
        records = np.load(folder / TRAINED_ROWS_FILE, allow_pickle=False)
        return {name.decode() for name in np.unique(records["job"][records["epoch"] != REPLAYED_EPOCH])}
    except (OSError, ValueError, LookupError):
        return set()


def read_state(checkpoint: Checkpoint) -> TrainState:
    """The state.json of a checkpoint. Raises CheckpointError, JsonError or StorageError."""
    path = checkpoint.folder / STATE_FILE
    return state_from(read_json(path), str(path))


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Put weights, moments and random numbers of a checkpoint into a model that is already in memory.

    A base without adapter weights leaves an adapted model as it is: the caller made it fresh.

    Raises:
        CheckpointError: a file is no safetensors, or names or shapes are not this model's.
    """
    folder, model = checkpoint.folder, engine.model
    if not isinstance(model, PeftModel):
        load_weights(model, folder)
    elif (folder / ADAPTER_WEIGHTS).exists():
        load_adapter(model, folder)
    with readable(folder / OPTIMIZER_FILE):
        engine.load_optimizer_tensors(load_file(folder / OPTIMIZER_FILE))
    with readable(folder / RANDOM_FILE):
        restore_random_state(load_file(folder / RANDOM_FILE))
