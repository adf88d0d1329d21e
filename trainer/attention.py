"""Attention that stays inside its document, registered with transformers under `NAME` (inside the trainer's arrow).

Any model that takes its attention from transformers' AttentionInterface runs packed rows with it, unchanged. The
layout of the micro-batch is handed over beside the model's own arguments, by `packed(...)`, since not every
architecture passes extra arguments down. CPU: blocks by hand (trainer.causal_blocks); half precision on CUDA: one
variable-length flash call (that branch has not been run: this machine has no GPU); dropout, a window shorter than the
document, fp32 on CUDA: one scaled_dot_product_attention call a group of documents.

Shapes   B=1, T tokens, H query heads, G key/value heads, D documents of a group, L longest of them, C channels of a
         head
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any  # transformers hands architecture-specific keyword arguments through

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from trainer.causal_blocks import CausalBlocks, GroupOnDevice
from trainer.packing import Layout

NAME = "dropforge_packed"


@dataclass(frozen=True, slots=True)
class LayoutOnDevice:
    """A `packing.Layout` with its index tensors where the model is."""

    groups: tuple[GroupOnDevice, ...]
    boundaries: Tensor  # int32, D + 1: where each document begins, and the end
    longest: int


def to_device(layout: Layout, device: torch.device) -> LayoutOnDevice:
    """Move the index arrays of a layout to `device`."""

    def move(array: Any) -> Tensor | None:  # numpy array or None
        return None if array is None else torch.from_numpy(array).to(device, non_blocking=True)

    groups = tuple(
        GroupOnDevice(g.start, g.stop, g.documents, g.longest, move(g.into_rectangle), move(g.out_of_rectangle))
        for g in layout.groups
    )
    ends = torch.tensor([0, *layout.lengths]).cumsum(0, dtype=torch.int32)
    return LayoutOnDevice(groups, ends.to(device, non_blocking=True), max(layout.lengths))


_current: list[LayoutOnDevice] = []


@contextmanager
def packed(layout: LayoutOnDevice) -> Iterator[None]:
    """Attention inside this block (forward, and backward with gradient checkpointing) follows `layout`."""
    _current.append(layout)
    try:
        yield
    finally:
        _current.pop()


class _Gather(torch.autograd.Function):
    """rows[index], where each row occurs once as itself and otherwise as padding whose gradient is exactly zero.

    So the backward pass is a gather too (`inverse`), not the slow scatter-add that indexing would give.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor
    ) -> Tensor:  # ctx: torch has no public type for it
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


class _Scatter(torch.autograd.Function):
    """The real tokens of a rectangle; backward puts zeros into its padding."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.cells = cells.shape[0]
        return cells.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient.new_zeros(ctx.cells, *gradient.shape[1:]).index_copy_(0, index, gradient), None


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: query [1,H,T,C], key and value [1,G,T,C] -> ([1,T,H,C], None)."""
    layout = _current[-1]
    q_THC, k_TGC, v_TGC = (x[0].transpose(0, 1) for x in (query, key, value))
    if q_THC.is_cuda and q_THC.dtype in (torch.float16, torch.bfloat16):
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        out: Any = varlen_attn(
            q_THC, k_TGC, v_TGC, layout.boundaries, layout.boundaries, layout.longest, layout.longest,
            scale=scaling, window_size=window, enable_gqa=q_THC.shape[1] != k_TGC.shape[1],
        )  # fmt: skip
        return out[None], None
    if _by_blocks(layout, q_THC, dropout, sliding_window):
        scale = q_THC.shape[-1] ** -0.5 if scaling is None else scaling
        blocks: Tensor = CausalBlocks.apply(q_THC, k_TGC, v_TGC, layout.groups, scale)  # type: ignore[no-untyped-call]  # torch: untyped
        return blocks[None], None
    if q_THC.dtype == torch.bfloat16:  # sdpa on a CPU takes two to four times as long in it
        q_THC, k_TGC, v_TGC = (x.float() for x in (q_THC, k_TGC, v_TGC))
    parts = [_attend_group(g, q_THC, k_TGC, v_TGC, scaling, dropout, sliding_window) for g in layout.groups]
    return torch.cat(parts)[None].to(query.dtype), None


def _by_blocks(layout: LayoutOnDevice, q_THC: Tensor, dropout: float, sliding_window: int | None) -> bool:
    plain = dropout == 0 and (sliding_window is None or layout.longest <= sliding_window)
    return plain and not q_THC.is_cuda and not torch.is_autocast_enabled("cpu")


def _attend_group(
    group: GroupOnDevice,
    q_THC: Tensor,
    k_TGC: Tensor,
    v_TGC: Tensor,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    q, k, v = (_rectangle(x[group.start : group.stop], group) for x in (q_THC, k_TGC, v_TGC))
    band = None
    if sliding_window is not None and group.longest > sliding_window:
        band = _causal_band(group.longest, sliding_window, q.device)
    out_DHLC = scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=band,
        is_causal=band is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    cells = out_DHLC.transpose(1, 2).reshape(group.documents * group.longest, *q_THC.shape[1:])
    if group.out_of_rectangle is None:
        return cells
    tokens: Tensor = _Scatter.apply(cells, group.out_of_rectangle)  # type: ignore[no-untyped-call]  # torch: untyped
    return tokens


def _rectangle(x_THC: Tensor, group: GroupOnDevice) -> Tensor:
    if group.into_rectangle is not None:
        x_THC = _Gather.apply(x_THC, group.into_rectangle, group.out_of_rectangle)  # type: ignore[no-untyped-call]  # torch: untyped
    return x_THC.reshape(group.documents, group.longest, *x_THC.shape[1:]).transpose(1, 2)


def _causal_band(length: int, window: int, device: torch.device) -> Tensor:
    row, column = torch.arange(length, device=device)[:, None], torch.arange(length, device=device)
    return (column <= row) & (column > row - window)


AttentionInterface.register(NAME, attend)
