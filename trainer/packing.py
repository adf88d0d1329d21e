"""Rows of one optimizer step become padding-free micro-batches (queue -> trainer, the last stretch before the model).

Documents lie end to end in one sequence, longest first; positions restart at 0 in each, and `Layout` says which stretch
is which document, so that attention never crosses a boundary. Nothing here is padded except inside attention itself,
which takes documents in blocks of `BLOCK` tokens.

Shapes   T tokens of a micro-batch, N trained positions of it; P cells = T and what fills up the last blocks
Units    lengths and budgets in tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Tokens of a block in attention (trainer.causal_blocks, the times in docs/log.md, "Training").
BLOCK = 48


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: token ids and, for each, whether the model is trained to say it."""

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which stretch of a micro-batch is which document, and how attention cuts it into blocks.

    Cells are tokens in the order of blocks: first those of every document's first block, then those of the second
    block of all that have one, and so on. What fills up a document's last block repeats its last token, where causal
    attention never lets a real position look.
    """

    lengths: tuple[int, ...]
    documents_in_row: tuple[int, ...]  # how many documents have a first block, a second one, ...
    token_of_cell: Ints
    cell_of_token: Ints


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass: ids_T, positions_T, and at positions `trained_N` the next token `targets_N`."""

    ids_T: Ints
    positions_T: Ints
    trained_N: Ints
    targets_N: Ints
    layout: Layout


def pack(rows: Sequence[Row], budget_tokens: int) -> list[MicroBatch]:
    """Pack the rows of one optimizer step into micro-batches of at most `budget_tokens`.

    Rows are laid longest first, so neighbours are alike in length; a row longer than the budget is a micro-batch by
    itself. The result depends on the rows alone. Empty rows vanish.
    """
    by_length = sorted((row for row in rows if len(row.ids)), key=lambda row: -len(row.ids))
    batches: list[MicroBatch] = []
    pending: list[Row] = []
    filled = 0
    for row in by_length:
        if pending and filled + len(row.ids) > budget_tokens:
            batches.append(_micro_batch(pending))
            pending, filled = [], 0
        pending.append(row)
        filled += len(row.ids)
    if pending:
        batches.append(_micro_batch(pending))
    return batches


def _micro_batch(rows: list[Row]) -> MicroBatch:
    lengths = np.array([len(row.ids) for row in rows])
    ids_T = np.concatenate([row.ids for row in rows]).astype(np.int64)
    mask_T = np.concatenate([row.mask for row in rows])
    starts = np.cumsum(lengths) - lengths
    mask_T[starts] = False  # nothing stands before a document's first token that could predict it
    targets_at = np.flatnonzero(mask_T)
    positions_T = np.arange(len(ids_T)) - np.repeat(starts, lengths)
    return MicroBatch(ids_T, positions_T, targets_at - 1, ids_T[targets_at], layout_of(lengths.tolist()))


def layout_of(lengths: Sequence[int]) -> Layout:
    """Cut documents, given longest first, into blocks for attention."""
    sizes = np.array(lengths)
    starts = np.cumsum(sizes) - sizes
    documents_in_row: list[int] = []
    tokens, real = [], []
    for begin in range(0, lengths[0], BLOCK):
        documents = int((sizes > begin).sum())
        place = np.arange(begin, begin + BLOCK)
        last = sizes[:documents, None] - 1
        documents_in_row.append(documents)
        tokens.append((starts[:documents, None] + np.minimum(place, last)).ravel())
        real.append((place <= last).ravel())
    token_of_cell, cells = np.concatenate(tokens), np.flatnonzero(np.concatenate(real))
    cell_of_token = np.empty(len(cells), np.int64)
    cell_of_token[token_of_cell[cells]] = cells
    return Layout(tuple(lengths), tuple(documents_in_row), token_of_cell, cell_of_token)
