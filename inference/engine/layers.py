"""Layers for serving: linears whose weights oneDNN packed once, with an optional LoRA beside them (inside the inference
server).

Packing pays 1.3-4 x for 1-64 rows on a CPU without matrix units, and a row's result does not depend on how many rows
are computed with it
(two rows or more), which plain F.linear does not promise below four rows: the reason why the same request gives the
same text alone and in
a full batch. Measured in docs/log.md, Serving.
"""

from dataclasses import dataclass

import torch
from torch import nn

_FEWEST_ROWS = 2  # a single row takes another kernel whose last bits differ


@dataclass(frozen=True, slots=True)
class LowRank:
    """A LoRA pair: the layer adds (x A^T) B^T * scale. A is [r, in], B is [out, r]."""

    a_RI: torch.Tensor
    b_OR: torch.Tensor
    scale: float


class PackedLinear(nn.Module):
    """y = x W^T + bias (+ LoRA). `weight_OI` may be shared between models; it is packed on CPUs in float32, else kept
    as it is.
    """

    def __init__(
        self, packed: torch.Tensor, bias_O: torch.Tensor | None, is_packed: bool, lora: LowRank | None
    ) -> None:
        super().__init__()
        self._packed = packed
        self._bias_O = bias_O
        self._is_packed = is_packed
        self._lora = lora

    def add_lora(self, lora: LowRank) -> None:
        """Put a low-rank pair beside the weight."""
        self._lora = lora

    def shared(self) -> list[torch.Tensor]:
        """The tensors that a copy of this layer may share."""
        return [self._packed] if self._bias_O is None else [self._packed, self._bias_O]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        flat = x.reshape(-1, x.shape[-1])
        if not self._is_packed:
            return self._with_lora(nn.functional.linear(flat, self._packed, self._bias_O), flat).view(*x.shape[:-1], -1)
        rows = flat.shape[0]
        if rows < _FEWEST_ROWS:
            flat = flat.expand(_FEWEST_ROWS, -1)
        y = torch.ops.mkldnn._linear_pointwise(flat.contiguous(), self._packed, self._bias_O, "none", [], "")
        return self._with_lora(y, flat)[:rows].view(*x.shape[:-1], -1)

    def _with_lora(self, y: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        if self._lora is None:
            return y
        low = nn.functional.linear(_padded(flat), self._lora.a_RI)
        return y + nn.functional.linear(low, self._lora.b_OR)[: len(y)] * self._lora.scale


def _padded(flat: torch.Tensor) -> torch.Tensor:
    """Rows filled up to a multiple of four, where F.linear's rows do not depend on their number."""
    missing = -len(flat) % 4
    return torch.cat([flat, flat.new_zeros((missing, flat.shape[1]))]) if missing else flat


def pack(weight_OI: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Pack a weight for oneDNN when that helps. Returns (weight as PackedLinear wants it, whether it is packed)."""
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    if weight_OI.device.type != "cpu" or weight_OI.dtype != torch.float32 or not has_onednn:
        return weight_OI, False
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), 32), True
