"""LoRA through peft: small trainable matrices beside frozen ones (inside the trainer's arrow).

Layers, names and files are peft's; only the arithmetic of a layer is ours, since peft's makes four micro-batches of
numbers on its way to one (docs/log.md, "Training").

Writes   adapter_model.safetensors, adapter_config.json in peft's layout, so that peft and transformers load the folder
Errors   CheckpointError when an adapter does not fit
Shapes   T tokens, I inputs and O outputs of a layer, R the rank
"""

import warnings
from pathlib import Path
from typing import Any  # what peft hands back is untyped

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from core.atomic import read_json
from core.errors import CheckpointError
from trainer.config.dials import LORA_ALPHA_PER_RANK
from trainer.models.save import readable

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class _WithAdapter(torch.autograd.Function):
    """x W' + bias + scale x A' B', with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        low_TR = x_TI @ a_RI.T
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR)
        ctx.scale = scale
        return nn.functional.linear(x_TI, weight_OI, bias_O).addmm_(low_TR, b_OR.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_out_TO,) = gradients
        x_TI, weight_OI, a_RI, b_OR, low_TR = ctx.saved_tensors
        d_low_TR = (d_out_TO @ b_OR).mul_(ctx.scale)
        d_x_TI = (d_out_TO @ weight_OI).addmm_(d_low_TR, a_RI) if ctx.needs_input_grad[0] else None
        return d_x_TI, None, None, d_low_TR.T @ x_TI, (d_out_TO.T @ low_TR).mul_(ctx.scale), None


class LeanLinear(Linear):
    """peft's layer, without its temporaries while it is trained in one format."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, names = self.base_layer, self.active_adapters
        plain = len(names) == 1 and not (args or kwargs or self.disable_adapters or self.merged)
        if not plain or torch.is_autocast_enabled(x.device.type):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        a, b, scale = (where[names[0]] for where in (self.lora_A, self.lora_B, self.scaling))
        out: Tensor = _WithAdapter.apply(x.flatten(0, -2), base.weight, base.bias, a.weight, b.weight, scale)  # type: ignore[no-untyped-call]  # torch: untyped
        return out.view(*x.shape[:-1], -1)


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
    if not getattr(model, "is_quantized", False):  # 4-bit weights need peft's own layer for them
        config._register_custom_module({nn.Linear: LeanLinear})
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
