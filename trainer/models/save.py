"""Weights by name, without duplicates, in and out of a model in memory (inside the trainer's arrow).

Reads    model.safetensors        Errors   CheckpointError when names or shapes are not the model's
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from core.errors import CheckpointError

MODEL_WEIGHTS = "model.safetensors"


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, each once: of tied weights the first name stands for both (no copies)."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into the model, in place.

    Raises:
        CheckpointError: a weight is missing, unknown or of another shape.
    """
    own = model_tensors(model)
    with safe_open(folder / MODEL_WEIGHTS, framework="pt") as file:
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
