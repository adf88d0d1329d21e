"""Running out of memory, on a GPU or on the host, as one error (inside the trainer's arrow)."""

import gc

import torch

from core.errors import ResourceError

HALVINGS = 3  # an eighth of the usual micro-batch that still does not fit will not fit at all


class OutOfMemoryError(ResourceError):
    """An optimizer step does not fit into memory."""

    code = 3050
    slug = "out_of_memory"


def raise_if_out_of_memory(error: Exception) -> None:
    """Turn what torch raises for a failed allocation into OutOfMemoryError; return when it is something else.

    A CPU allocation that fails is a plain RuntimeError of torch, known by its words alone.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        raise OutOfMemoryError(
            "an optimizer step does not fit into memory", fix="lower hyperparams.max_length, or use trainer.method lora"
        ) from None


def release_unused() -> None:
    """Give back what nothing refers to, so that the next try has all there is."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
