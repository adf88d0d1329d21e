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
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, heads: int, dtype: torch.dtype) -> torch.Tensor:
        """[B H, 1, L]: 0 where a position may be seen, -inf where not."""
        if (window, heads) not in self.masks:
            places_L = torch.arange(self.shelf.length, device=self.lengths_B.device)
            hidden_BL = _hidden(places_L, self.lengths_B[:, None], window)
            self.masks[window, heads] = _minus_infinity(hidden_BL, dtype).repeat_interleave(heads, 0)[:, None]
        return self.masks[window, heads]


@dataclass(slots=True)
class ChunkPart:
    """A chunk of a prompt: tokens [start, start + count) of the step, at positions block.length onwards."""

    start: int
    count: int
    block: Block
    cut: dict[int | None, list["Tile"]] = field(default_factory=dict)

    def tiles(self, window: int | None, like: torch.Tensor) -> list["Tile"]:
        """Runs of tokens computed at once; on a CPU the same ones whatever the chunk, for equal bits."""
        if window not in self.cut:
            size = TILE_TOKENS if like.device.type == "cpu" else self.count
            ends = [(first, min(first + size, self.count)) for first in range(0, self.count, size)]
            self.cut[window] = [self._tile(first, last, window, like) for first, last in ends]
        return self.cut[window]

    def _tile(self, first: int, last: int, window: int | None, like: torch.Tensor) -> "Tile":
        own, end = self.block.length + first, self.block.length + last
        begin = 0 if window is None else max(0, own - window + 1) // TILE_TOKENS * TILE_TOKENS
        places_C = torch.arange(own if window is None else begin, end, device=like.device)
        here_N1 = torch.arange(own, end, device=like.device)[:, None]
        return Tile(first, last, begin, end, _minus_infinity(_hidden(places_C, here_N1, window), like.dtype))


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens [first, last) of a chunk, which look at positions [begin, end).

    mask: [last - first, C], -inf where a token may not look, over the last C of these positions: without a window all
    that stood before the tile may be seen, so the mask does not grow with the context.
    """

    first: int
    last: int
    begin: int
    end: int
    mask: torch.Tensor


def _hidden(places_L: torch.Tensor, here_N1: torch.Tensor, window: int | None) -> torch.Tensor:
    """[N, L]: True where the token at a place may not look."""
    hidden_NL = places_L[None] > here_N1
    return hidden_NL if window is None else hidden_NL | (places_L[None] <= here_N1 - window)


def _minus_infinity(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _scores(
    query_NRD: torch.Tensor, key_NLD: torch.Tensor, mask: torch.Tensor, scaling: float, softcap: float | None
) -> torch.Tensor:
    """scaling q k^T + mask, [N, R, L]; the mask may be one for all N, R or L."""
    if softcap is None:
        return torch.baddbmm(mask, query_NRD, key_NLD.transpose(1, 2), alpha=scaling)
    scores_NRL = torch.bmm(query_NRD, key_NLD.transpose(1, 2)) * (scaling / softcap)
    return softcap * torch.tanh(scores_NRL) + mask


def _mixed(scores_NRL: torch.Tensor, value_NLD: torch.Tensor) -> torch.Tensor:
    """The values weighted by softmax(scores), [N, R, D]."""
    weights_NRL = torch.softmax(scores_NRL, dim=-1, dtype=torch.float32).to(value_NLD.dtype)
    return torch.bmm(weights_NRL, value_NLD)


@dataclass(slots=True)
class StepPlan:
    """Who is where in the packed row; all places are below `longest`. The same plan serves every layer of the step."""

    shelves: list[ShelfPart]
    chunks: list[ChunkPart]
    longest: int = 1


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
    query_NGD = query_QTD[:, part.start : end].transpose(0, 1).reshape(rows * heads, -1, size)
    mask = part.mask(window, heads, query_NGD.dtype)
    scores_NGL = _scores(query_NGD, keys[:rows].flatten(0, 1), mask, scaling, softcap)
    return _mixed(scores_NGL, values[:rows].flatten(0, 1)).view(rows, query_QTD.shape[0], -1)


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
    end = part.start + part.count
    part.block.write(layer, key_HTD[:, part.start : end], value_HTD[:, part.start : end])
    keys_HLD, values_HLD = part.block.keys[layer], part.block.values[layer]
    heads, groups = key_HTD.shape[0], query_QTD.shape[0] // key_HTD.shape[0]
    query_HGND = query_QTD[:, part.start : end].reshape(heads, groups, part.count, -1)
    nothing = query_QTD.new_zeros(())
    parts = []
    for tile in part.tiles(window, query_QTD):
        seen = slice(tile.begin, tile.end)
        query_HRD = query_HGND[:, :, tile.first : tile.last].flatten(1, 2)  # a key serves its whole group at once
        scores_HRL = _scores(query_HRD, keys_HLD[:, seen], nothing, scaling, softcap)
        scores_HRL.view(heads, groups, tile.last - tile.first, -1)[..., -tile.mask.shape[1] :] += tile.mask
        out_HRD = _mixed(scores_HRL, values_HLD[:, seen])
        parts.append(out_HRD.view(heads * groups, tile.last - tile.first, -1).transpose(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
