"""Which number format the matrix products run in: asked of the hardware, not of the wish (beside queue -> trainer).

bf16 without hardware for it is 7 to 30 times slower than fp32, and it is a library default elsewhere; with hardware
for it, it takes half the time. On a CPU `auto` therefore asks a stopwatch, once: when a run begins. The answer travels
in the run's state, since the promise of bit-equal weights after a restart needs the same one ever after.

Units    seconds, floating point operations
"""

import logging
import time

import torch

from core.errors import ConfigError

_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WORTH_IT = 1.5  # a product this much faster makes a step 1.3 times faster: the rest of it does not run in bf16 units
_NARROW = 256  # in narrower layers products are too small a share of a step: at 64 wide bf16 took 1.1 x as long
_WIDE = 1024  # wider ones are faster or slower by the same factor, and would only make the probe longer
_TOKENS = 1024
_TRIES = 12
logger = logging.getLogger(__name__)


def compute_dtype(wanted: str, device: str, auto: str) -> torch.dtype:
    """Settle `hyperparams.fp_precision` (auto, fp32, bf16, fp16) for a device.

    Args:
        auto: what `faster_on_cpu` said when the run began.

    Raises:
        ConfigError: fp16 on a CPU, which has no use for it.
    """
    if wanted == "auto" and device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if wanted == "fp16" and not device.startswith("cuda"):
        raise ConfigError(
            "fp16 needs a GPU", where="hyperparams.fp_precision", fix="--set hyperparams.fp_precision=auto"
        )
    return _FORMATS[auto if wanted == "auto" else wanted]


def faster_on_cpu(width: int) -> str:
    """`bf16` when products of a model with layers this wide are worth it on this CPU, else `fp32`.

    Takes about 0.1 s with hardware for bf16.
    """
    return "bf16" if width >= _NARROW and bf16_gain(width) >= _WORTH_IT else "fp32"


def tell(dtype: torch.dtype, device: str, width: int) -> None:
    """Log the format of the products, with a warning where this CPU, perhaps not the one the run began on, is slow in
    it."""
    logger.info("matrix products in %s", str(dtype).removeprefix("torch."))
    if dtype == torch.bfloat16 and device == "cpu" and (gain := bf16_gain(width)) < 1:
        fix = "--set hyperparams.fp_precision=fp32"
        logger.warning("a product in bf16 takes %.1f times as long as in fp32 on this CPU (fix: %s)", 1 / gain, fix)


def bf16_gain(width: int) -> float:
    """How many times faster than in fp32 a product of a layer this wide is in bf16; the best of some tries.

    The formats take turns, so that a busy moment of the machine does not hit one of them alone.
    """
    width = min(width, _WIDE)
    tries = [(_product_seconds(width, torch.float32), _product_seconds(width, torch.bfloat16)) for _ in range(_TRIES)]
    return min(fp32 for fp32, _ in tries) / min(bf16 for _, bf16 in tries)


def _product_seconds(width: int, dtype: torch.dtype) -> float:
    inputs, weights = torch.ones(_TOKENS, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    began = time.perf_counter()
    inputs @ weights
    return time.perf_counter() - began
