"""Attention of one packed step: every decoding context one token, every prompt its chunk (inside the inference server).

Registered with transformers as an attention function, so every architecture that uses that interface works unchanged:
the model sees one
long row of T tokens with their positions, and each token attends within its own context only. Shapes: T tokens, Q query
heads, H key-value
heads, G = Q / H, D head size, B contexts of a shelf, L positions.
"""

from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from inference.engine.cache import Block, Shelf

NAME = "dropforge_packed"


@dataclass(slots=True)
class ShelfPart:
    """The decoding contexts of one shelf: tokens [start, start + B) of the step."""

    start: int
    shelf: Shelf
    lengths_B: torch.Tensor  # positions held before this step
    span: int  # positions that matter: the longest context after this step, rounded up
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """[B, 1, 1, span]: 0 where a position may be seen, -inf where not."""
        if window not in self.masks:
            places_L = torch.arange(self.span, device=self.lengths_B.device)
            here_B1 = self.lengths_B[:, None]
            seen = places_L[None] <= here_B1
            if window is not None:
                seen &= places_L[None] > here_B1 - window
            self.masks[window] = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)[
                :, None, None
            ]
        return self.masks[window]


@dataclass(slots=True)
class ChunkPart:
    """A chunk of a prompt: tokens [start, start + count) of the step, at positions block.length onwards."""

    start: int
    count: int
    block: Block


@dataclass(slots=True)
class StepPlan:
    """Who is where in the packed row. The same plan serves every layer of the step."""

    shelves: list[ShelfPart]
    chunks: list[ChunkPart]


def _decode(
    part: ShelfPart,
    layer: int,
    query_QTD: torch.Tensor,
    key_HTD: torch.Tensor,
    value_HTD: torch.Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Returns [B, Q, D]."""
    rows = len(part.shelf.contexts)
    end = part.start + rows
    keys, values = part.shelf.keys[layer], part.shelf.values[layer]
    row_B = torch.arange(rows, device=keys.device)
    keys[row_B, :, part.lengths_B] = key_HTD[:, part.start : end].transpose(0, 1)
    values[row_B, :, part.lengths_B] = value_HTD[:, part.start : end].transpose(0, 1)
    heads, size = key_HTD.shape[0], key_HTD.shape[2]
    query_BHGD = query_QTD[:, part.start : end].transpose(0, 1).reshape(rows, heads, -1, size)
    scores = torch.matmul(query_BHGD, keys[:rows, :, : part.span].transpose(2, 3)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores + part.mask(window), dim=-1)
    return torch.matmul(weights, values[:rows, :, : part.span]).reshape(rows, query_QTD.shape[0], -1)


def _read(
    part: ChunkPart,
    layer: int,
    query_QTD: torch.Tensor,
    key_HTD: torch.Tensor,
    value_HTD: torch.Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Returns [count, Q, D]."""
    end, held = part.start + part.count, part.block.length
    part.block.write(layer, key_HTD[:, part.start : end], value_HTD[:, part.start : end])
    keys = part.block.keys[layer][:, : held + part.count]
    values = part.block.values[layer][:, : held + part.count]
    groups = query_QTD.shape[0] // keys.shape[0]
    query_HGND = query_QTD[:, part.start : end].reshape(keys.shape[0], groups, part.count, -1)
    scores = torch.matmul(query_HGND, keys.unsqueeze(1).transpose(2, 3)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    places_L = torch.arange(held + part.count, device=keys.device)
    here_N1 = torch.arange(held, held + part.count, device=keys.device)[:, None]
    unseen = places_L[None] > here_N1
    if window is not None:
        unseen |= places_L[None] <= here_N1 - window
    weights = torch.softmax(scores.masked_fill(unseen, -torch.inf), dim=-1)
    return torch.matmul(weights, values.unsqueeze(1)).flatten(0, 1).transpose(0, 1)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    plan: StepPlan | None = None,
    **_unused: object,
) -> tuple[torch.Tensor, None]:
    """The attention function: query [1, Q, T, D], key and value [1, H, T, D]; returns [1, T, Q, D]."""
    if plan is None:
        raise ValueError(f"attention {NAME} needs the plan of its step")
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # transformers numbers its attention layers with an int
    factor = scaling if scaling is not None else query.shape[-1] ** -0.5
    query_QTD, key_HTD, value_HTD = query[0], key[0], value[0]
    out = query.new_zeros((query.shape[2], query.shape[1], value.shape[3]))
    for shelf in plan.shelves:
        seen = _decode(shelf, layer, query_QTD, key_HTD, value_HTD, factor, sliding_window, softcap)
        out[shelf.start : shelf.start + len(seen)] = seen
    for chunk in plan.chunks:
        out[chunk.start : chunk.start + chunk.count] = _read(
            chunk, layer, query_QTD, key_HTD, value_HTD, factor, sliding_window, softcap
        )
    return out[None], None


def _no_mask(*_args: object, **_kwargs: object) -> None:
    """transformers builds no mask: the plan says who sees whom."""


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers; harmless when done twice."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
