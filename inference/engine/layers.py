"""Layers for serving: linears whose weights oneDNN packed once, with an optional LoRA beside them (inside the inference
server).

Packing pays 1.3-4 x for 1-64 rows on a CPU without matrix units, and a row's result does not depend on how many rows
are computed with it
(four rows or more), which plain F.linear does not promise below four rows: the reason why the same request gives the
same text alone and in
a full batch. Measured in docs/log.md, Serving.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

# A step is filled up to this many rows. Fewer take other kernels, with other last bits and slower (all linears of 29 M
# parameters: 2 rows 10.5 ms, 4 rows 7.8 ms).
FEWEST_ROWS = 4


def rows_computed(rows: int) -> int:
    """How many rows a step of `rows` is filled up to: eight sizes between a power of two and the next.

    oneDNN compiles and keeps a kernel for each number of rows of each linear: 0.6 ms and up to 0.6 MB a piece, of which
    it keeps 1,024. With a size for every length of prompt the process grew by 6 MB a minute.
    """
    step = max(1, (1 << (rows - 1).bit_length()) // 16)
    return max(FEWEST_ROWS, -(-rows // step) * step)


Linear = Callable[..., torch.Tensor]  # torch's operators carry no annotations
_packed_linear: Linear = torch.ops.mkldnn._linear_pointwise.default
_packed_linear_with: Linear = torch.ops.mkldnn._linear_pointwise.binary


@dataclass(frozen=True, slots=True)
class LowRank:
    """A LoRA pair: the layer adds (x A^T) B^T * scale. A is [r, in], B is [out, r]."""

    a_RI: torch.Tensor
    b_OR: torch.Tensor
    scale: float

    def of(self, x_TI: torch.Tensor) -> torch.Tensor:
        """What it adds to the linear's output, [T, out]."""
        low = nn.functional.linear(_padded(x_TI), self.a_RI)
        return nn.functional.linear(low, self.b_OR)[: len(x_TI)] * self.scale


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
        if self._is_packed:
            y = _packed_linear(flat.contiguous(), self._packed, self._bias_O, "none", [], "")
        else:
            y = nn.functional.linear(flat, self._packed, self._bias_O)
        return self._with_lora(y, flat).view(*x.shape[:-1], -1)

    # The next three compute what follows a linear in the same pass over its output, where no LoRA stands between.

    def swish(self, x_TI: torch.Tensor) -> torch.Tensor:
        """SiLU of the linear."""
        if self._is_packed and self._lora is None:
            return _packed_linear(x_TI, self._packed, self._bias_O, "swish", [], "")
        return _silu(self.forward(x_TI))

    def times(self, x_TI: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor:
        """The linear times another tensor."""
        if self._is_packed and self._lora is None:
            return _packed_linear_with(x_TI, other_TO, self._packed, self._bias_O, "mul")
        return self.forward(x_TI).mul_(other_TO)

    def plus(self, x_TI: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor:
        """The linear plus another tensor."""
        if self._is_packed and self._lora is None:
            return _packed_linear_with(x_TI, other_TO, self._packed, self._bias_O, "add")
        return self.forward(x_TI).add_(other_TO)

    def _with_lora(self, y: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        return y if self._lora is None else y + self._lora.of(flat)


class JoinedLinear(PackedLinear):
    """Several linears of one input in one product, their outputs side by side: a third less time than one by one (29 M
    parameters, query, key and value of 4 to 32 rows; docs/log.md, Serving).
    """

    def __init__(
        self, packed: torch.Tensor, bias_O: torch.Tensor | None, is_packed: bool, sizes: Sequence[int]
    ) -> None:
        """Args: sizes: outputs of each."""
        super().__init__(packed, bias_O, is_packed, None)
        self.sizes = tuple(sizes)
        self._pairs: dict[int, LowRank] = {}

    def add_lora_to(self, place: int, lora: LowRank) -> None:
        """Put a low-rank pair beside one of the linears."""
        self._pairs[place] = lora

    def outputs_of(self, place: int) -> slice:
        """Where the outputs of one linear stand."""
        first = sum(self.sizes[:place])
        return slice(first, first + self.sizes[place])

    def _with_lora(self, y: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        for place, pair in self._pairs.items():
            y[:, self.outputs_of(place)] += pair.of(flat)
        return y


class JoinedPart(nn.Module):
    """One linear of a joined product, for who asks for it alone."""

    def __init__(self, joined: JoinedLinear, place: int) -> None:
        super().__init__()
        self.joined = joined
        self._place = place

    def add_lora(self, lora: LowRank) -> None:
        """Put a low-rank pair beside the weight."""
        self.joined.add_lora_to(self._place, lora)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        y: torch.Tensor = self.joined(x)
        return y[..., self.joined.outputs_of(self._place)]


def _padded(flat: torch.Tensor) -> torch.Tensor:
    """Rows filled up to a multiple of four, where F.linear's rows do not depend on their number."""
    missing = -len(flat) % 4
    return torch.cat([flat, flat.new_zeros((missing, flat.shape[1]))]) if missing else flat


def _silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU whose bits do not depend on the number of rows: F.silu's vector loop ends in a scalar one with another exp,
    which only widths that are multiples of 64 never reach (seen with torch 2.13 at widths 48 and 50).
    """
    if x.shape[-1] % 64 == 0:
        return nn.functional.silu(x)
    return x / torch.exp(-x).add_(1)


def pack(weight_OI: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Pack a weight for oneDNN when that helps. Returns (weight as PackedLinear wants it, whether it is packed)."""
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    if weight_OI.device.type != "cpu" or weight_OI.dtype != torch.float32 or not has_onednn:
        return weight_OI, False
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), 32), True
