"""Causal attention inside documents on a CPU, forward and backward by hand (inside the trainer's arrow).

Queries are taken in blocks, and a block looks at no key behind its own end, so that the half of the scores which
causality hides is hardly computed. For the heads of a small model this takes 0.7 of the time of torch's flash kernel
in fp32 and 0.3 in bf16 (docs/log.md, "Training"). One function for a whole micro-batch, since autograd would fill and
add a micro-batch of zeros for each slice taken of it.

Shapes   T tokens, H query heads, G key/value heads, R = H / G query heads that share one, C channels of a head;
         D documents of a group, L the longest of them; Q = D x G; n queries of a block, m keys they look at
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any  # torch has no public type for the context of an autograd function

import torch
from torch import Tensor

# Queries of a block: of 32, 64, 96, 128 and 256, 64 was the fastest in fp32, 128 in bf16, and this 3 % behind either.
BLOCK = 96
# The probabilities of documents up to this long are kept for the backward pass; those of longer ones, whose memory
# grows with the square, are computed again, which takes a quarter more time.
KEPT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class GroupOnDevice:
    """A `packing.Group` with its index tensors where the model is."""

    start: int
    stop: int
    documents: int
    longest: int
    into_rectangle: Tensor | None
    out_of_rectangle: Tensor | None


class CausalBlocks(torch.autograd.Function):
    """Attention of a micro-batch: (q_THC, k_TGC, v_TGC, groups, scale) -> THC."""

    @staticmethod
    def forward(
        ctx: Any, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, groups: tuple[GroupOnDevice, ...], scale: float
    ) -> Tensor:
        heads, behind = k_TGC.shape[1], _behind(q_THC)
        out_THC = q_THC.new_empty(q_THC.shape)
        kept: list[Tensor | None] = []
        for group in groups:
            q_QRLC, k_QLC, v_QLC = _take(q_THC, group, heads), *(_take(x, group, heads)[:, 0] for x in (k_TGC, v_TGC))
            out_QRLC = torch.empty_like(q_QRLC)
            kept += (q_QRLC, k_QLC, v_QLC)
            for begin, end in _blocks(group):
                q_QnC = q_QRLC[:, :, begin:end].flatten(1, 2)
                p_Qnm = _probabilities(q_QnC, k_QLC[:, :end], behind[: end - begin, : end - begin], scale)
                out_QRLC[:, :, begin:end] = torch.bmm(p_Qnm, v_QLC[:, :end]).view_as(out_QRLC[:, :, begin:end])
                kept.append(p_Qnm if group.longest <= KEPT_TOKENS else None)
            _put(out_QRLC, group, out_THC)
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.scale = groups, scale
        return out_THC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_out_THC,) = gradients
        saved: Iterator[Any] = iter(ctx.saved_tensors)  # in the order of forward
        scale, behind = ctx.scale, _behind(d_out_THC)
        into: list[Tensor] = []
        for group in ctx.groups:
            q_QRLC, k_QLC, v_QLC = next(saved), next(saved), next(saved)
            if not into:
                heads = k_QLC.shape[0] // group.documents
                tokens, channels = len(d_out_THC), k_QLC.shape[2]
                into = [torch.empty_like(d_out_THC), *(k_QLC.new_empty(tokens, heads, channels) for _ in "kv")]
            d_q_QRLC, d_k_QLC, d_v_QLC = torch.empty_like(q_QRLC), torch.zeros_like(k_QLC), torch.zeros_like(v_QLC)
            d_out_QRLC = _take(d_out_THC, group, heads, padding_is_zero=True)
            for begin, end in _blocks(group):
                rows = end - begin
                q_QnC, d_out_QnC = (x[:, :, begin:end].flatten(1, 2) for x in (q_QRLC, d_out_QRLC))
                k_QmC, v_QmC = k_QLC[:, :end], v_QLC[:, :end]
                p_Qnm = next(saved)
                if p_Qnm is None:
                    p_Qnm = _probabilities(q_QnC, k_QmC, behind[:rows, :rows], scale)
                d_v_QLC[:, :end].baddbmm_(p_Qnm.mT, d_out_QnC)
                d_p_Qnm = torch.bmm(d_out_QnC, v_QmC.mT)
                d_s_Qnm = torch._softmax_backward_data(d_p_Qnm, p_Qnm, -1, p_Qnm.dtype)
                d_q_QnC = torch.bmm(d_s_Qnm, k_QmC).mul_(scale)
                d_q_QRLC[:, :, begin:end] = d_q_QnC.view_as(d_q_QRLC[:, :, begin:end])
                d_k_QLC[:, :end].baddbmm_(d_s_Qnm.mT, q_QnC, alpha=scale)
            for one, whole in zip((d_q_QRLC, d_k_QLC[:, None], d_v_QLC[:, None]), into, strict=True):
                _put(one, group, whole)
        return *into, None, None


def _blocks(group: GroupOnDevice) -> Iterator[tuple[int, int]]:
    for begin in range(0, group.longest, BLOCK):
        yield begin, min(begin + BLOCK, group.longest)


def _behind(like: Tensor) -> Tensor:
    """What is added to the scores of a block's own keys: nothing, or minus infinity for those behind the query."""
    return like.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)


def _probabilities(q_QnC: Tensor, k_QmC: Tensor, behind: Tensor, scale: float) -> Tensor:
    """softmax(scale q k), where the block's own keys, the last ones, are hidden from the queries before them."""
    rows = len(behind)
    s_Qnm = torch.baddbmm(q_QnC.new_zeros(()), q_QnC, k_QmC.mT, beta=0, alpha=scale)
    s_Qnm.view(len(s_Qnm), -1, rows, s_Qnm.shape[2])[..., -rows:].add_(behind)
    return torch.softmax(s_Qnm, -1)


def _take(x_THC: Tensor, group: GroupOnDevice, heads: int, *, padding_is_zero: bool = False) -> Tensor:
    """The tokens of a group as [Q, R, L, C]; its padding repeats a token, or is zero."""
    cells = x_THC[group.start : group.stop]
    if group.into_rectangle is not None and group.out_of_rectangle is not None:
        if padding_is_zero:
            zeros = cells.new_zeros(len(group.into_rectangle), *cells.shape[1:])
            cells = zeros.index_copy_(0, group.out_of_rectangle, cells)
        else:
            cells = cells.index_select(0, group.into_rectangle)
    cells_DLGRC = cells.view(group.documents, group.longest, heads, -1, cells.shape[2])
    return cells_DLGRC.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()


def _put(x_QRLC: Tensor, group: GroupOnDevice, into_THC: Tensor) -> None:
    """Write what `_take` would have taken, without the padding, to its place."""
    x_DGRLC = x_QRLC.view(group.documents, -1, *x_QRLC.shape[1:])
    cells = x_DGRLC.permute(0, 3, 1, 2, 4).reshape(group.documents * group.longest, *into_THC.shape[1:])
    if group.out_of_rectangle is not None:
        cells = cells.index_select(0, group.out_of_rectangle)
    into_THC[group.start : group.stop] = cells
