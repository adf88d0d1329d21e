"""A frozen base in 4 bits under a LoRA adapter, through bitsandbytes (QLoRA, arXiv 2305.14314; inside the trainer's
arrow).

Only the copy in the trainer's memory is 4 bits wide: checkpoint-0 stays as it was imported, judge and server put the
adapter on that. Refused on a CPU: with AVX-512 bitsandbytes 0.50 packs the weights anew at the first pass without
gradients, and gradients are silently wrong from then on (docs/log.md, "Training"). Never run on a GPU here.

Errors   ConfigError without a GPU, or when the run trains all weights; MissingToolError without bitsandbytes
"""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from core.errors import ConfigError, MissingToolError

PACKAGE = "bitsandbytes"
_INSTALL = "pip install 'dropforge[quantize]'"


def four_bits(
    quantize: str | None, *, method: str, device: str, compute_dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """What transformers needs to load linear layers in 4 bits; None when `trainer.quantize` is null.

    Args:
        method: of the run. compute_dtype: what a layer is unpacked to for its product.

    Raises:
        ConfigError, MissingToolError: with the one fix.
    """
    if quantize is None:
        return None
    if not device.startswith("cuda"):
        raise ConfigError(
            "4-bit weights are for GPUs, and torch sees none here",
            where="trainer.quantize",
            fix=f"set trainer.quantize to null; where there is a GPU: {_INSTALL}",
        )
    if method != "lora":
        raise ConfigError(
            "4-bit weights cannot be trained, only an adapter on them",
            where="trainer.quantize",
            fix="set trainer.method to lora in a new `run`, or trainer.quantize to null",
        )
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingToolError(
            f"trainer.quantize is {quantize!r}, which needs {PACKAGE}",
            where="config.json",
            fix=f"{_INSTALL}, or set trainer.quantize to null",
        )
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # untyped there
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
