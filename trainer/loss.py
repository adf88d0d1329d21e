"""Cross-entropy over the vocabulary at the trained positions only, a chunk at a time (inside the trainer's arrow).

The hidden states are gathered before the vocabulary head, and each chunk's gradient is taken as soon as its logits
exist, so no N x V matrix is ever held whole: the method of "Cut Your Losses" (arXiv 2411.09009) and Liger's fused
linear cross-entropy, without their kernels.

Shapes   N trained positions, M of them in one chunk, E hidden size, V vocabulary
"""

from typing import Any  # torch has no public type for the context of an autograd function

import torch
from torch import Tensor, nn

from core.memory_estimate import CHUNK_LOGITS


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NE: Tensor, weight_VE: Tensor, targets_N: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        rows = max(1, CHUNK_LOGITS // weight_VE.shape[0])
        factor_VE = weight_VE.to(hidden_NE.dtype)
        d_hidden_NE = torch.empty_like(hidden_NE)
        d_weight_VE = torch.zeros_like(weight_VE) if ctx.needs_input_grad[1] else None
        total = hidden_NE.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden_NE.shape[0], rows):
            chunk = slice(start, start + rows)
            loss, d_logits_MV = _chunk_loss(hidden_NE[chunk] @ factor_VE.T, targets_N[chunk], scale, softcap)
            total += loss
            torch.mm(d_logits_MV, factor_VE, out=d_hidden_NE[chunk])
            if d_weight_VE is None:
                continue
            if d_weight_VE.dtype == d_logits_MV.dtype:
                d_weight_VE.addmm_(d_logits_MV.T, hidden_NE[chunk])
            else:
                d_weight_VE += d_logits_MV.T @ hidden_NE[chunk]
        ctx.save_for_backward(d_hidden_NE, d_weight_VE)
        return total * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_NE, d_weight_VE = ctx.saved_tensors
        (gradient,) = gradients
        return d_hidden_NE * gradient, None if d_weight_VE is None else d_weight_VE * gradient, None, None, None


def _chunk_loss(raw_MV: Tensor, targets_M: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a chunk and scale x its gradient with respect to the raw logits."""
    logits_MV = raw_MV.float()
    squashed_MV = None
    if softcap is not None:  # Gemma 2 and later: softcap * tanh(logits / softcap)
        squashed_MV = torch.tanh(logits_MV / softcap)
        logits_MV = squashed_MV * softcap
    log_p_MV = torch.log_softmax(logits_MV, dim=-1)
    loss = -log_p_MV.gather(1, targets_M[:, None]).sum()
    d_logits_MV = log_p_MV.exp_()
    d_logits_MV.scatter_add_(1, targets_M[:, None], d_logits_MV.new_full((len(targets_M), 1), -1.0))
    d_logits_MV *= scale
    if squashed_MV is not None:
        d_logits_MV *= 1 - squashed_MV.square()
    return loss, d_logits_MV.to(raw_MV.dtype)


def summed_cross_entropy(
    hidden_NE: Tensor, weight_VE: Tensor, targets_N: Tensor, *, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """scale x the sum over N of -log softmax(hidden @ weight.T)[target], in fp32.

    Under autocast the matrix products run in its format. `scale` is what every gradient is multiplied by (1 / tokens
    of the optimizer step), applied early so that small formats do not overflow.
    """
    device = hidden_NE.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_NE, weight_VE = hidden_NE.to(dtype), weight_VE.to(dtype)
        with torch.autocast(device, enabled=False):
            return _apply(hidden_NE, weight_VE, targets_N, scale, softcap)
    return _apply(hidden_NE, weight_VE, targets_N, scale, softcap)


def _apply(hidden_NE: Tensor, weight_VE: Tensor, targets_N: Tensor, scale: float, softcap: float | None) -> Tensor:
    loss: Tensor = _SummedCrossEntropy.apply(hidden_NE, weight_VE, targets_N, scale, softcap)  # type: ignore[no-untyped-call]  # torch: untyped
    return loss


def vocabulary_head(model: nn.Module) -> Tensor:
    """The V x E matrix that turns hidden states into logits. Raises AttributeError when the head is not a plain
    matrix."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # transformers models have it, nn.Module does not say
    weight: Tensor = head.weight
    return weight
