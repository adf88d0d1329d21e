"""Where the judge computes (arrow: judge): on a GPU only when there is room beside whoever trains or serves on it.

Reads    free memory of the CUDA devices that torch may use, through NVML
Units    bytes
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # a manifest is a JSON document

from core.checkpoints import WEIGHTS_SUFFIX
from core.gpu import GpuReading, NvmlProbe

# Free memory must be this many times the need, so that a trainer beside us is not driven out of memory.
ROOM = 1.3
# Activations and logits of one batch, beside the weights: _BATCH_TOKENS x hidden states and 4 Mi logits, rounded up.
_WORKING_BYTES = 1 << 29


def needed_bytes(manifests: Sequence[Mapping[str, Any]]) -> int:
    """Upper bound of what scoring takes: the weights in float32, even when the files hold half precision."""
    return 2 * sum(weight_bytes(manifest) for manifest in manifests) + _WORKING_BYTES


def weight_bytes(manifest: Mapping[str, Any]) -> int:
    """Size of a checkpoint's weight files."""
    return sum(int(e["bytes"]) for name, e in manifest["files"].items() if name.endswith(WEIGHTS_SUFFIX))


def choose(wanted: str, need_bytes: int, free_bytes: Mapping[str, int]) -> str:
    """The device to use.

    Args:
        wanted: `evaluation.device`: auto, cpu or cuda:N.
        free_bytes: free memory by device name (`cuda:0`, ...), empty without a GPU.
    """
    if wanted != "auto":
        return "cuda:0" if wanted == "cuda" else wanted
    roomy = {name: free for name, free in free_bytes.items() if free >= ROOM * need_bytes}
    return max(roomy, key=roomy.__getitem__) if roomy else "cpu"


def free_memory() -> dict[str, int]:
    """Free bytes of each CUDA device that torch sees; empty, and torch not even imported, when there is no driver.

    The branch with a GPU has not been run on this project's machine, which has none.
    """
    if not (any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()):
        return {}
    import torch  # heavy, and needed only when there is a GPU to ask

    if not torch.cuda.is_available():
        return {}
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    probe = NvmlProbe()
    try:
        return free_by_name([str(device.uuid) for device in devices], probe.read())
    finally:
        probe.close()


def free_by_name(uuids: Sequence[str], reading: GpuReading) -> dict[str, int]:
    """Free bytes by torch's name of a device, as NVML has them: asking torch would take memory on every GPU.

    Args:
        uuids: of the devices that torch may use, in its order. reading: what NVML says of all GPUs, in its own.
    """
    found = {f"cuda:{index}": reading.by_uuid(uuid) for index, uuid in enumerate(uuids)}
    return {
        name: gpu.memory_total_bytes - gpu.memory_used_bytes
        for name, gpu in found.items()
        if gpu is not None and gpu.memory_total_bytes is not None and gpu.memory_used_bytes is not None
    }
