"""Attention that stays inside its document, registered with transformers under `NAME` (inside the trainer's arrow).

Any model that takes its attention from transformers' AttentionInterface runs packed rows with it, unchanged. The
layout of the micro-batch is handed over beside the model's own arguments, by `packed(...)`, since not every
architecture passes extra arguments down. CPU: blocks by hand (trainer.causal_blocks); half precision on CUDA: one
variable-length flash call (that branch has not been run: this machine has no GPU); dropout, a window shorter than the
document, fp32 on CUDA: one scaled_dot_product_attention call a document.

Shapes   B=1, T tokens, L of them in a document, H query heads, G key/value heads, C channels of a head
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

from trainer.causal_blocks import BlocksOnDevice, CausalBlocks
from trainer.packing import Layout

NAME = "dropforge_packed"


@dataclass(frozen=True, slots=True)
class LayoutOnDevice:
    """A `packing.Layout` with its index tensors where the model is."""

    lengths: tuple[int, ...]
    blocks: BlocksOnDevice
    boundaries: Tensor  # int32: where each document begins, and the end
    longest: int


def to_device(layout: Layout, device: torch.device) -> LayoutOnDevice:
    """Move the index arrays of a layout to `device`."""
    token_of_cell, cell_of_token = (
        torch.from_numpy(x).to(device, non_blocking=True) for x in (layout.token_of_cell, layout.cell_of_token)
    )
    blocks = BlocksOnDevice(layout.documents_in_row, token_of_cell, cell_of_token)
    ends = torch.tensor([0, *layout.lengths]).cumsum(0, dtype=torch.int32)
    return LayoutOnDevice(layout.lengths, blocks, ends.to(device, non_blocking=True), max(layout.lengths))


_current: list[LayoutOnDevice] = []


@contextmanager
def packed(layout: LayoutOnDevice) -> Iterator[None]:
    """Attention inside this block (forward, and backward with gradient checkpointing) follows `layout`."""
    _current.append(layout)
    try:
        yield
    finally:
        _current.pop()


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
        blocks: Tensor = CausalBlocks.apply(q_THC, k_TGC, v_TGC, layout.blocks, scale)  # type: ignore[no-untyped-call]  # torch: untyped
        return blocks[None], None
    if q_THC.dtype == torch.bfloat16:  # sdpa on a CPU takes two to four times as long in it
        q_THC, k_TGC, v_TGC = (x.float() for x in (q_THC, k_TGC, v_TGC))
    documents = zip(*(torch.split(x, list(layout.lengths)) for x in (q_THC, k_TGC, v_TGC)), strict=True)
    parts = [_attend_alone(q, k, v, scaling, dropout, sliding_window) for q, k, v in documents]
    return torch.cat(parts)[None].to(query.dtype), None


def _by_blocks(layout: LayoutOnDevice, q_THC: Tensor, dropout: float, sliding_window: int | None) -> bool:
    plain = dropout == 0 and (sliding_window is None or layout.longest <= sliding_window)
    return plain and not q_THC.is_cuda and not torch.is_autocast_enabled("cpu")


def _attend_alone(
    q_LHC: Tensor, k_LGC: Tensor, v_LGC: Tensor, scaling: float | None, dropout: float, sliding_window: int | None
) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_LHC, k_LGC, v_LGC))
    length = len(q_LHC)
    band = None
    if sliding_window is not None and length > sliding_window:
        band = _causal_band(length, sliding_window, q.device)
    out_HLC: Tensor = scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=band,
        is_causal=band is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=q.shape[1] != k.shape[1],
    )[0]
    return out_HLC.transpose(0, 1)


def _causal_band(length: int, window: int, device: torch.device) -> Tensor:
    row, column = torch.arange(length, device=device)[:, None], torch.arange(length, device=device)
    return (column <= row) & (column > row - window)


AttentionInterface.register(NAME, attend)
