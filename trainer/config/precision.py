"""Which number format the matrix products run in: asked of the hardware, not of the wish (beside queue -> trainer).

bf16 without hardware for it is 7 to 30 times slower than fp32, and it is a library default elsewhere. So `auto` takes
it only where the device says it has the instructions; that answer, unlike a stopwatch, is the same after every
restart, which the promise of bit-equal weights needs.
"""

import torch

from core.errors import ConfigError

_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(wanted: str, device: str) -> torch.dtype:
    """Settle `hyperparams.fp_precision` (auto, fp32, bf16, fp16) for a device.

    Raises:
        ConfigError: fp16 on a CPU, which has no use for it.
    """
    if wanted == "auto":
        return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32
    if wanted == "fp16" and not device.startswith("cuda"):
        raise ConfigError(
            "fp16 needs a GPU", where="hyperparams.fp_precision", fix="--set hyperparams.fp_precision=auto"
        )
    return _FORMATS[wanted]
