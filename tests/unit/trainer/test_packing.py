"""Packing keeps every token once, marks the right targets, and cuts documents into blocks for attention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_models import rows
from trainer.packing import BLOCK, Row, layout_of, pack


def _row(ids: list[int], trained: list[int]) -> Row:
    mask = np.zeros(len(ids), np.bool_)
    mask[trained] = True
    return Row(np.array(ids, np.int32), mask)


def test_targets_are_the_next_tokens_of_trained_positions_only() -> None:
    (batch,) = pack([_row([10, 11, 12, 13], [2, 3]), _row([20, 21, 22], [1])], 100)
    assert batch.ids_T.tolist() == [10, 11, 12, 13, 20, 21, 22]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.trained_N.tolist() == [1, 2, 4]
    assert batch.targets_N.tolist() == [12, 13, 21]


def test_a_documents_first_token_is_never_a_target_since_only_another_document_stands_before_it() -> None:
    (batch,) = pack([_row([10, 11, 12], [0, 1, 2]), _row([20, 21], [0, 1])], 100)
    assert batch.targets_N.tolist() == [11, 12, 21]


def test_empty_rows_vanish_and_a_row_without_trained_tokens_has_no_target() -> None:
    assert pack([_row([], [])], 10) == []
    (batch,) = pack([_row([5, 6], [])], 10)
    assert len(batch.trained_N) == 0


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(16, 400))
def test_every_row_stands_in_exactly_one_micro_batch_and_the_budget_holds(lengths: list[int], budget: int) -> None:
    given_rows = rows(lengths)
    batches = pack(given_rows, budget)
    packed = [tuple(ids) for b in batches for ids in np.split(b.ids_T, np.cumsum(b.layout.lengths)[:-1])]
    assert sorted(packed) == sorted(tuple(row.ids.tolist()) for row in given_rows)
    assert all(len(b.ids_T) <= budget or len(b.layout.lengths) == 1 for b in batches)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_blocks_hold_every_token_once_behind_those_before_it_and_fill_up_with_their_documents_last(
    lengths: list[int],
) -> None:
    ordered = sorted(lengths, reverse=True)
    layout = layout_of(ordered)
    document_of = np.repeat(np.arange(len(ordered)), ordered)
    place_of = np.concatenate([np.arange(length) for length in ordered])
    assert layout.token_of_cell[layout.cell_of_token].tolist() == list(range(sum(lengths)))
    blocks = layout.token_of_cell.reshape(-1, BLOCK)
    row_of = np.repeat(np.arange(len(layout.documents_in_row)), layout.documents_in_row)
    document = np.concatenate([np.arange(documents) for documents in layout.documents_in_row])
    assert (document_of[blocks] == document[:, None]).all()
    last = np.array(ordered)[document] - 1
    wanted = row_of[:, None] * BLOCK + np.arange(BLOCK)
    assert (place_of[blocks] == np.minimum(wanted, last[:, None])).all()


@pytest.mark.parametrize("budget", [50, 1000])
def test_packing_depends_on_the_rows_alone(budget: int) -> None:
    first, second = (pack(rows([30, 20, 20, 9]), budget) for _ in range(2))
    assert [b.ids_T.tolist() for b in first] == [b.ids_T.tolist() for b in second]
