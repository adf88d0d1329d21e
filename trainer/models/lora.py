"""LoRA through peft: small trainable matrices beside frozen ones (inside the trainer's arrow).

Writes   adapter_model.safetensors, adapter_config.json in peft's layout, so that peft and transformers load the folder
Errors   CheckpointError when an adapter does not fit
"""

import warnings
from pathlib import Path
from typing import Any  # what peft hands back is untyped

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from core.atomic import read_json
from core.errors import CheckpointError
from trainer.config.dials import LORA_ALPHA_PER_RANK
from trainer.models.save import readable

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapter(model: PreTrainedModel, *, rank: int, seed: int, base_folder: Path) -> PeftModel:
    """Put a fresh adapter on every linear layer but the vocabulary head; what it adds is zero until it is trained.

    Args:
        seed: decides the adapter's first random values; torch's own random state is left as it was.
        base_folder: written into adapter_config.json so that `from_pretrained` on an adapter's folder finds its base.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=LORA_ALPHA_PER_RANK * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base_folder),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 reads an attribute transformers 5 has renamed
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    return adapted


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's weights under the names peft saves them by (no copies)."""
    return dict(get_peft_model_state_dict(model))


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Copy an adapter's weights from a checkpoint folder into the model.

    Raises:
        CheckpointError: its rank or its layers are not this model's.
    """
    saved_rank = read_json(folder / ADAPTER_CONFIG)["r"]
    config: Any = model.peft_config["default"]
    rank = config.r
    if saved_rank != rank:
        raise CheckpointError(
            f"the adapter has rank {saved_rank}, the settings say {rank}",
            where=str(folder),
            fix=f"--set trainer.lora_rank={saved_rank}, or another `run`",
        )
    with readable(folder / ADAPTER_WEIGHTS):
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    result: Any = set_peft_model_state_dict(model, tensors)
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"the adapter does not fit: {len(missing)} weights missing, {len(result.unexpected_keys)} unknown",
            where=str(folder),
            fix="use the base model the run began with, or another `run`",
        )
