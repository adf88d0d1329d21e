"""Key-value memory of many contexts at once (inside the inference server).

Shapes: B contexts, H key-value heads, L positions, D head size. A context that reads its prompt owns a private block
[1, H, L, D].
When it decodes it lives in a shelf: all contexts of about one length side by side in [B, H, L, D], kept compact, so
that one batched
attention call serves them all. A context that outgrows its shelf moves to the next longer one. Lengths are in
tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

SHORTEST_SHELF = 128  # a shelf more costs a small step more than 64 positions more to read


def shelf_length(tokens: int) -> int:
    """The shelf a context of this many tokens stands in: a quarter of the power of two above as a step, at least 128.

    A step attends over the whole shelf: memory read without gaps runs 1.3-1.7 times as fast as slices of it.
    """
    step = max(SHORTEST_SHELF, (1 << (tokens - 1).bit_length()) // 4)
    return -(-tokens // step) * step


@dataclass(slots=True)
class Block:
    """Keys and values of a context that reads its prompt, per layer [H, L, D]; made by each layer's first write."""

    room: int
    length: int = 0
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def write(self, layer: int, keys_HTD: torch.Tensor, values_HTD: torch.Tensor) -> None:
        """Put T new positions after `length`; `length` itself moves on when the whole step is done."""
        end = self.length + keys_HTD.shape[1]
        if layer not in self.keys or self.keys[layer].shape[1] < end:
            room = max(self.room, end if layer not in self.keys else 2 * end)
            self.keys[layer] = self._roomier(self.keys.get(layer), keys_HTD, room)
            self.values[layer] = self._roomier(self.values.get(layer), values_HTD, room)
        self.keys[layer][:, self.length : end] = keys_HTD
        self.values[layer][:, self.length : end] = values_HTD

    def _roomier(self, held: torch.Tensor | None, like: torch.Tensor, room: int) -> torch.Tensor:
        grown = like.new_empty((like.shape[0], room, like.shape[2]))
        if held is not None:
            grown[:, : self.length] = held[:, : self.length]
        return grown

    def copy_prefix(self, tokens: int, room: int) -> "Block":
        """A new block that holds the first `tokens` positions of this one."""
        twin = Block(room, tokens)
        for layer, keys in self.keys.items():
            for source, target in ((keys, twin.keys), (self.values[layer], twin.values)):
                target[layer] = source.new_empty((source.shape[0], room, source.shape[2]))
                target[layer][:, :tokens] = source[:, :tokens]
        return twin


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A context that moves to a shelf: tokens held, keys and values per layer [H, >= length, D]."""

    context: int
    length: int
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]


class Shelf:
    """Decoding contexts of up to `length` tokens."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.contexts: list[int] = []  # row -> context handle
        self.lengths: list[int] = []  # row -> tokens held
        self.keys: dict[int, torch.Tensor] = {}  # layer -> [rows, H, L, D]
        self.values: dict[int, torch.Tensor] = {}

    def add(self, newcomers: Sequence[Newcomer]) -> None:
        """Take contexts over from blocks or another shelf."""
        first, end = len(self.contexts), len(self.contexts) + len(newcomers)
        self.contexts += [each.context for each in newcomers]
        self.lengths += [each.length for each in newcomers]
        for mine, theirs in ((self.keys, [n.keys for n in newcomers]), (self.values, [n.values for n in newcomers])):
            for layer, like in theirs[0].items():
                mine[layer] = _with_room(mine.get(layer), first, end, like, self.length)
                mine[layer][first:end] = 0  # what nobody writes is masked, but must be finite
                for row, source in enumerate(theirs, first):
                    length = self.lengths[row]
                    mine[layer][row, :, :length] = source[layer][:, :length]

    def rows(self, row: int) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """One context's keys and values as views."""
        return {i: t[row] for i, t in self.keys.items()}, {i: t[row] for i, t in self.values.items()}

    def remove(self, context: int) -> None:
        """Take a context out; the last row moves into its place."""
        row, last = self.contexts.index(context), len(self.contexts) - 1
        if row != last:
            for tensors in (self.keys, self.values):
                for tensor in tensors.values():
                    tensor[row] = tensor[last]  # all of it: what the other held behind its end may not be finite
            self.contexts[row], self.lengths[row] = self.contexts[last], self.lengths[last]
        self.contexts.pop()
        self.lengths.pop()
        if not self.contexts:
            self.keys, self.values = {}, {}
        else:
            self._give_back_rows()

    def _give_back_rows(self) -> None:
        """Keep memory in proportion to what is held: one context that stays on must not keep the room of a crowd."""
        keep = len(self.contexts) + len(self.contexts) // 2
        for tensors in (self.keys, self.values):
            for layer, tensor in tensors.items():
                if tensor.shape[0] > 2 * keep:
                    tensors[layer] = tensor[:keep].clone()


def _with_room(tensor: torch.Tensor | None, held: int, rows: int, like: torch.Tensor, length: int) -> torch.Tensor:
    """Keep the tensor when it has the rows, else a copy of what it holds with room for half as many more."""
    if tensor is not None and tensor.shape[0] >= rows:
        return tensor
    grown = like.new_empty((rows + rows // 2, like.shape[0], length, like.shape[2]))
    if tensor is not None:
        grown[:held] = tensor[:held]
    return grown


class KeyValueMemory:
    """All contexts of one model."""

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.shelves: dict[int, Shelf] = {}
        self._where: dict[int, Shelf] = {}

    def open(self, context: int, block: Block) -> None:
        self.blocks[context] = block

    def make_room(self, decoding: Iterable[int]) -> None:
        """Before a step: contexts that decode for the first time leave their block (one that ends with its first token
        never needs to), those whose shelf is full move on. So each has room for one more token.
        """
        fresh = [(context, self.blocks.pop(context)) for context in decoding if context in self.blocks]
        moving = [Newcomer(context, block.length, block.keys, block.values) for context, block in fresh]
        for shelf in self.shelves.values():
            full = [row for row, length in enumerate(shelf.lengths) if length >= shelf.length]
            moving += [Newcomer(shelf.contexts[row], shelf.lengths[row], *shelf.rows(row)) for row in full]
        groups: dict[int, list[Newcomer]] = {}
        for each in moving:
            groups.setdefault(shelf_length(each.length + 1), []).append(each)
        for size, group in groups.items():
            target = self.shelves.setdefault(size, Shelf(size))
            target.add(group)
            for each in group:
                if each.context in self._where:
                    self._where[each.context].remove(each.context)
                self._where[each.context] = target

    def decoding(self) -> list[Shelf]:
        """The shelves with contexts on them, shortest first."""
        return [self.shelves[size] for size in sorted(self.shelves) if self.shelves[size].contexts]

    def close(self, context: int) -> None:
        self.blocks.pop(context, None)
        shelf = self._where.pop(context, None)
        if shelf is not None:
            shelf.remove(context)
