"""Rows of one optimizer step become padding-free micro-batches (queue -> trainer, the last stretch before the model).

Documents lie end to end in one sequence; positions restart at 0 in each, and `Layout` says which stretch is which
          document, so
that attention never crosses a boundary. Nothing here is padded except what attention itself needs: short documents of
similar length form a group that attends as one small rectangle, a long document attends alone.

Shapes   T tokens of a micro-batch, N trained positions of it, D documents of a group, L longest document of a group
Units    lengths and budgets in tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# A document this long fills the attention kernel by itself; shorter ones share a call (docs/log.md, "Training").
LONG_DOCUMENT_TOKENS = 192
# A group takes the next shorter document while padding it costs less than another call: measured as well.
SHORTEST_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: token ids and, for each, whether the model is trained to say it."""

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring documents that attend in one call, as a rectangle of D x L."""

    start: int
    stop: int
    documents: int
    longest: int
    # Where each cell of the rectangle lies in [start, stop), and where each token lies in the rectangle; None: no
    # padding.
    into_rectangle: Ints | None
    out_of_rectangle: Ints | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Which stretch of a micro-batch is which document."""

    lengths: tuple[int, ...]
    groups: tuple[Group, ...]


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
    """Group documents, given longest first, for attention."""
    groups: list[Group] = []
    first = start = 0
    while first < len(lengths):
        last = first + 1
        longest = lengths[first]
        if longest < LONG_DOCUMENT_TOKENS:
            while last < len(lengths) and lengths[last] >= longest * SHORTEST_SHARE:
                last += 1
        members = lengths[first:last]
        groups.append(_group(start, members))
        start += sum(members)
        first = last
    return Layout(tuple(lengths), tuple(groups))


def _group(start: int, lengths: Sequence[int]) -> Group:
    documents, longest, tokens = len(lengths), lengths[0], sum(lengths)
    if tokens == documents * longest:
        return Group(start, start + tokens, documents, longest, None, None)
    sizes = np.array(lengths)
    starts = np.cumsum(sizes) - sizes
    column_L = np.arange(longest)
    # A padding cell repeats the document's last token: causal attention never lets a real position look that far.
    into_DL = starts[:, None] + np.minimum(column_L, sizes[:, None] - 1)
    out_T = np.flatnonzero((column_L < sizes[:, None]).ravel())
    return Group(start, start + tokens, documents, longest, into_DL.ravel(), out_T)
