"""Causal attention inside documents on a CPU, forward and backward by hand (inside the trainer's arrow).

Documents are cut into blocks of `packing.BLOCK` tokens, and the i-th blocks of all documents that have one, a *row* of
blocks, attend in one call to the first i + 1 blocks of their own documents. So the half of the scores which causality
hides is hardly computed, calls are few and large enough for two threads, and their shapes are few, for which the
kernels exist already (docs/log.md, "Training"). One function for a whole micro-batch, since autograd would fill and
add a micro-batch of zeros for each slice taken of it.

Shapes   T tokens, H query heads, G key/value heads, R = H / G query heads that share one, C channels of a head;
         n = BLOCK; P cells = T and what fills up the last blocks; B blocks of all heads, P / n x G; Q of them in one
         row; m keys they look at
"""

from dataclasses import dataclass
from typing import Any  # torch has no public type for the context of an autograd function

import torch
from torch import Tensor

from trainer.packing import BLOCK

# The probabilities of queries that look at up to this many keys are kept for the backward pass; those of later ones,
# whose memory grows with the square, are computed again, which takes a quarter more time.
KEPT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class BlocksOnDevice:
    """The blocks of a `packing.Layout` with its index tensors where the model is."""

    documents_in_row: tuple[int, ...]
    token_of_cell: Tensor
    cell_of_token: Tensor


class CausalBlocks(torch.autograd.Function):
    """Attention of a micro-batch: (q_THC, k_TGC, v_TGC, blocks, scale) -> THC."""

    @staticmethod
    def forward(ctx: Any, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, blocks: BlocksOnDevice, scale: float) -> Tensor:
        heads, behind = k_TGC.shape[1], _behind(q_THC)
        q_BNC, k_BnC, v_BnC = (
            _into_blocks(x.index_select(0, blocks.token_of_cell), heads) for x in (q_THC, k_TGC, v_TGC)
        )
        out_BNC = torch.empty_like(q_BNC)
        kept: list[Tensor | None] = []
        rows = _rows(blocks, heads)
        for row, (begin, end) in enumerate(rows):
            k_QmC, v_QmC = (_up_to(x, rows[: row + 1]) for x in (k_BnC, v_BnC))
            p_QNm = _probabilities(q_BNC[begin:end], k_QmC, behind, scale)
            torch.bmm(p_QNm, v_QmC, out=out_BNC[begin:end])
            kept.append(p_QNm if k_QmC.shape[1] <= KEPT_TOKENS else None)
        ctx.save_for_backward(q_BNC, k_BnC, v_BnC, *kept)
        ctx.blocks, ctx.heads, ctx.scale = blocks, heads, scale
        return _out_of_blocks(out_BNC, heads).index_select(0, blocks.cell_of_token)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_out_THC,) = gradients
        q_BNC, k_BnC, v_BnC, *kept = ctx.saved_tensors
        blocks, heads, scale, behind = ctx.blocks, ctx.heads, ctx.scale, _behind(q_BNC)
        d_cells = d_out_THC.new_zeros(len(blocks.token_of_cell), *d_out_THC.shape[1:])
        d_out_BNC = _into_blocks(d_cells.index_copy_(0, blocks.cell_of_token, d_out_THC), heads)
        d_q_BNC, d_k_BnC, d_v_BnC = (torch.empty_like(x) for x in (q_BNC, k_BnC, v_BnC))
        # What the rows below have given the keys and values of the blocks above them.
        from_below: list[Tensor] = []
        rows = _rows(blocks, heads)
        for row, (begin, end) in reversed(list(enumerate(rows))):
            k_QmC, v_QmC = (_up_to(x, rows[: row + 1]) for x in (k_BnC, v_BnC))
            q_QNC, d_out_QNC, p_QNm = q_BNC[begin:end], d_out_BNC[begin:end], kept.pop()
            if p_QNm is None:
                p_QNm = _probabilities(q_QNC, k_QmC, behind, scale)
            d_v_QmC = torch.bmm(p_QNm.mT, d_out_QNC)
            d_s_QNm = torch._softmax_backward_data(torch.bmm(d_out_QNC, v_QmC.mT), p_QNm, -1, p_QNm.dtype)
            torch.bmm(d_s_QNm, k_QmC, out=d_q_BNC[begin:end])
            d_k_QmC = torch.bmm(d_s_QNm.mT, q_QNC)
            for whole, below in zip((d_k_QmC, d_v_QmC), from_below, strict=False):  # nothing is below the last row
                whole[: len(below)] += below
            d_k_BnC[begin:end], d_v_BnC[begin:end] = d_k_QmC[:, -BLOCK:], d_v_QmC[:, -BLOCK:]
            from_below = [d_k_QmC[:, :-BLOCK], d_v_QmC[:, :-BLOCK]]
        d_q_BNC *= scale
        d_k_BnC *= scale
        into = [_out_of_blocks(x, heads).index_select(0, blocks.cell_of_token) for x in (d_q_BNC, d_k_BnC, d_v_BnC)]
        return *into, None, None


def _rows(blocks: BlocksOnDevice, heads: int) -> list[tuple[int, int]]:
    """Where each row of blocks begins and ends among B."""
    rows: list[tuple[int, int]] = []
    begin = 0
    for documents in blocks.documents_in_row:
        rows.append((begin, begin + documents * heads))
        begin = rows[-1][1]
    return rows


def _up_to(x_BnC: Tensor, rows: list[tuple[int, int]]) -> Tensor:
    """The blocks of these rows, of the documents that reach the last of them, as [Q, m, C].

    Documents stand longest first, so those that reach a row are the first of every row above.
    """
    last, end = rows[-1]
    parts = [x_BnC[begin : begin + end - last] for begin, _ in rows]
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _behind(like: Tensor) -> Tensor:
    """What is added to the scores of a block's own keys: nothing, or minus infinity for those behind the query."""
    return like.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)[:, None]


def _probabilities(q_QNC: Tensor, k_QmC: Tensor, behind: Tensor, scale: float) -> Tensor:
    """softmax(scale q k), where the block's own keys, the last ones, are hidden from the queries before them."""
    s_QNm = torch.baddbmm(q_QNC.new_zeros(()), q_QNC, k_QmC.mT, beta=0, alpha=scale)
    s_QNm.view(len(s_QNm), BLOCK, -1, s_QNm.shape[2])[..., -BLOCK:].add_(behind)
    return torch.softmax(s_QNm, -1)


def _into_blocks(x_PHC: Tensor, heads: int) -> Tensor:
    """[P, H, C] as [B, n x R, C]: what shares a key head lies together, the R heads of a token side by side."""
    blocks, channels = len(x_PHC) // BLOCK, x_PHC.shape[2]
    x = x_PHC.view(blocks, BLOCK, heads, -1, channels).transpose(1, 2)
    return x.reshape(blocks * heads, -1, channels)


def _out_of_blocks(x_BNC: Tensor, heads: int) -> Tensor:
    """What `_into_blocks` was given."""
    blocks, channels = len(x_BNC) // heads, x_BNC.shape[2]
    x = x_BNC.view(blocks, heads, BLOCK, -1, channels).transpose(1, 2)
    return x.reshape(blocks * BLOCK, -1, channels)
