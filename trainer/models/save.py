"""Weights by name, without duplicates, in and out of a model in memory (inside the trainer's arrow).

Reads    model.safetensors        Errors   CheckpointError when names or shapes are not the model's; StorageError
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from core.atomic import storage_error
from core.errors import CheckpointError

MODEL_WEIGHTS = "model.safetensors"
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Raise StorageError for a disk that refuses, also where safetensors has wrapped the system's error in its own."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, where) from error
    except SafetensorError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise storage_error(OSError(number, os.strerror(number)), where) from error


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, each once: of tied weights the first name stands for both (no copies)."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Reading safetensors: raises CheckpointError, naming the file, when it is none (a pickle, a page of HTML)."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(
            f"not a safetensors file: {error}", where=str(path), fix="restore the checkpoint's folder from a backup"
        ) from error


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into the model, in place.

    Raises:
        CheckpointError: no safetensors file; a weight is missing, unknown or of another shape.
    """
    own, path = model_tensors(model), folder / MODEL_WEIGHTS
    with readable(path), safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if names != own.keys():
            odd = min(names ^ own.keys())
            raise CheckpointError(
                f"{odd} is in the checkpoint or in the model, not in both",
                where=str(folder),
                fix="use the base model the run began with, or another `run`",
            )
        for name, tensor in own.items():
            saved = file.get_tensor(name)
            if saved.shape != tensor.shape:
                raise CheckpointError(
                    f"{name} is {list(saved.shape)} in the checkpoint, {list(tensor.shape)} in the model",
                    where=str(folder),
                    fix="use the base model the run began with, or another `run`",
                )
            tensor.copy_(saved)
