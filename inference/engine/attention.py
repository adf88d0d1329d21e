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
from inference.generation import TILE_TOKENS

NAME = "dropforge_serving"  # not the trainer's name: transformers keeps one registry a process


@dataclass(slots=True)
class ShelfPart:
    """The decoding contexts of one shelf: tokens [start, start + B) of the step."""

    start: int
    shelf: Shelf
    rows_B: torch.Tensor  # 0..B-1
    lengths_B: torch.Tensor  # positions held before this step
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """[B, 1, 1, L]: 0 where a position may be seen, -inf where not."""
        if window not in self.masks:
            places_L = torch.arange(self.shelf.length, device=self.lengths_B.device)
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
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def tiles(self, device: torch.device) -> list[tuple[int, int]]:
        """Runs of tokens computed at once; on a CPU the same ones whatever the chunk, for equal bits."""
        size = TILE_TOKENS if device.type == "cpu" else self.count
        return [(first, min(first + size, self.count)) for first in range(0, self.count, size)]

    def unseen(self, window: int | None, device: torch.device) -> torch.Tensor:
        """[count, positions]: True where a token may not look."""
        if window not in self.masks:
            held = self.block.length
            places_L = torch.arange(held + self.count, device=device)
            here_N1 = torch.arange(held, held + self.count, device=device)[:, None]
            hidden = places_L[None] > here_N1
            if window is not None:
                hidden |= places_L[None] <= here_N1 - window
            self.masks[window] = hidden
        return self.masks[window]


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
    keys[part.rows_B, :, part.lengths_B] = key_HTD[:, part.start : end].transpose(0, 1)
    values[part.rows_B, :, part.lengths_B] = value_HTD[:, part.start : end].transpose(0, 1)
    heads, size = key_HTD.shape[0], key_HTD.shape[2]
    query_BHGD = query_QTD[:, part.start : end].transpose(0, 1).reshape(rows, heads, -1, size)
    scores = torch.matmul(query_BHGD, keys[:rows].transpose(2, 3))
    if softcap is not None:
        scores, scaling = softcap * torch.tanh(scores * (scaling / softcap)), 1.0
    weights = torch.softmax(torch.add(part.mask(window), scores, alpha=scaling), dim=-1).to(values.dtype)
    return torch.matmul(weights, values[:rows]).reshape(rows, query_QTD.shape[0], -1)


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
    heads = key_HTD.shape[0]
    query_HGND = query_QTD[:, part.start : end].reshape(heads, query_QTD.shape[0] // heads, part.count, -1)
    tiles = []
    for first, last in part.tiles(query_QTD.device):
        keys = part.block.keys[layer][:, None, : held + last]
        values = part.block.values[layer][:, None, : held + last]
        scores = torch.matmul(query_HGND[:, :, first:last], keys.transpose(2, 3)) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = part.unseen(window, keys.device)[first:last, : held + last]
        weights = torch.softmax(scores.masked_fill_(hidden, -torch.inf), dim=-1, dtype=torch.float32)
        tiles.append(torch.matmul(weights.to(values.dtype), values).flatten(0, 1).transpose(0, 1))
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def attend(
    plan: StepPlan,
    layer: int,
    query_QTD: torch.Tensor,
    key_HTD: torch.Tensor,
    value_HTD: torch.Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Store the step's keys and values and attend, each token within its context. Returns [T, Q, D]."""
    how = (layer, query_QTD, key_HTD, value_HTD, scaling, window, softcap)
    parts = [_decode(part, *how) for part in plan.shelves]
    parts += [_read(chunk, *how) for chunk in plan.chunks]
    missing = query_QTD.shape[1] - sum(map(len, parts))  # rows of nobody, which must be finite
    if missing:
        parts.append(query_QTD.new_zeros((missing, query_QTD.shape[0], value_HTD.shape[2])))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
    return attend(plan, layer, query[0], key[0], value[0], factor, sliding_window, softcap)[None], None


def _no_mask(*_args: object, **_kwargs: object) -> None:
    """transformers builds no mask: the plan says who sees whom."""


def register() -> None:
    """Make `attn_implementation=NAME` known to transformers; harmless when done twice."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
