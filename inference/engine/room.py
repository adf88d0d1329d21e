"""How many tokens' keys and values a model may hold at once (inside the inference server).

Measured when a model is loaded, from the memory that is free then. The scheduler admits requests within it, so that
many long ones wait, and are at last refused, instead of ending the process.
Units: bytes, tokens.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from core.gpu import SystemProbe

_SHARE = 0.4  # of the free memory, for one model; another may be loaded beside it
# A token may stand in a shelf a quarter too long, with half as many rows again unused, and be copied when it grows.
_TOKENS_HELD_A_TOKEN = 3
_CGROUP = Path("/sys/fs/cgroup")


def token_bytes(network: PreTrainedModel) -> int:
    """Keys and values of one token over all layers."""
    config = network.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_size * network.dtype.itemsize)


def tokens_that_fit(network: PreTrainedModel) -> int:
    """Tokens of all contexts together; at least one."""
    free = _free_bytes(network.device)
    return max(1, int(_SHARE * free) // (_TOKENS_HELD_A_TOKEN * token_bytes(network)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    machine = SystemProbe(Path("/")).read().memory_available_bytes
    try:  # a container's own limit, cgroup v2
        limit = int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such file outside containers; "max" is no number
        return machine
    return max(0, min(machine, limit))
