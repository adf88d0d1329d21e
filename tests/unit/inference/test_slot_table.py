"""A request keeps its model; models nobody uses leave, the serving one never."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import OverloadedError
from inference.slot_table import ModelNotLoadedError, SlotTable


def slot(name: str) -> Any:
    return SimpleNamespace(id=name, uses=0, last_used_s=0.0)


def test_before_anything_serves_the_alias_is_overload_and_an_id_is_unknown() -> None:
    table = SlotTable(2)
    with pytest.raises(OverloadedError):
        table.acquire("dropforge")
    with pytest.raises(ModelNotLoadedError):
        table.acquire("1-aaaaaaaaaaaa")


def test_a_slot_in_use_survives_any_number_of_swaps() -> None:
    table = SlotTable(1)
    table.serve(slot("a"))
    with table.using("dropforge") as held:
        for name in "bcd":
            table.serve(slot(name))
        assert table.loaded_ids() == ["a", "d"]
        assert held.id == "a"
    assert table.loaded_ids() == ["d"]


def test_the_least_recently_used_leaves_first_and_the_serving_one_never() -> None:
    table = SlotTable(2)
    table.serve(slot("a"))
    for name in "bc":
        table.put(slot(name))
    assert table.loaded_ids() == ["a", "c"]


def test_look_up_and_count_are_one_step_under_racing_swaps() -> None:
    table = SlotTable(1)
    table.serve(slot("a"))
    stop = threading.Event()

    def swap() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            table.serve(slot(f"{turn}"))

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(2000):
            with table.using("dropforge") as held:
                assert held.uses >= 1
                assert table.get(held.id) is held
    finally:
        stop.set()
        swapper.join()
    assert len(table.loaded_ids()) <= 2
