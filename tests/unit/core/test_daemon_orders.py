"""Orders to the trainer: one at a time, a level that never waits, nothing acted on twice."""

import json
from collections.abc import Callable

import jsonschema
import pytest

from core.daemon.orders import OrderBook
from core.daemon.training_view import TrainingView
from core.paths import Workspace, schema_file
from core.status import write_status

Book = Callable[[], OrderBook]


@pytest.fixture
def book(workspace: Workspace) -> Book:
    """Each call is a new daemon on the same root."""
    return lambda: OrderBook(workspace, TrainingView(workspace))


def given(workspace: Workspace) -> dict[str, object]:
    return json.loads(workspace.status_file("orders.json").read_text())


def ack(workspace: Workspace, seq: int, step: int = 7, checkpoint: str | None = None) -> None:
    doc = {"status": "training", "ack": {"seq": seq, "step": step, "checkpoint": checkpoint}}
    write_status(workspace.status_file("training_status.json"), doc)


def test_one_shots_wait_for_each_other(workspace: Workspace, book: Book) -> None:
    orders = book()
    first, second = orders.ask("checkpoint"), orders.ask("skip", job_id=None)
    orders.tick()
    assert (given(workspace)["command"], second.seq) == ("checkpoint", None)
    ack(workspace, 1, checkpoint="7-aaaaaaaaaaaa")
    orders.tick()
    assert first.ack == {"seq": 1, "step": 7, "checkpoint": "7-aaaaaaaaaaaa"}
    assert (given(workspace)["command"], given(workspace)["seq"]) == ("skip", 2)


def test_a_pause_does_not_wait_behind_an_order_on_its_way(workspace: Workspace, book: Book) -> None:
    orders = book()
    orders.ask("checkpoint")
    orders.tick()
    orders.by_hand(True)
    assert (given(workspace)["command"], given(workspace)["seq"], given(workspace)["paused"]) == ("checkpoint", 1, True)


def test_pausing_twice_is_one_order(book: Book) -> None:
    orders = book()
    assert orders.by_hand(True) is not None
    assert orders.by_hand(True) is None
    assert orders.by_hand(False) is not None
    assert orders.by_hand(False) is None


def test_a_resume_by_hand_does_not_lift_a_pause_for_a_full_disk(workspace: Workspace, book: Book) -> None:
    orders = book()
    orders.by_machine(True, "disk full")
    orders.by_hand(True)
    orders.by_hand(False)
    assert orders.paused
    orders.by_machine(False)
    assert not orders.paused


def test_the_sequence_goes_on_over_a_restart_and_beyond_the_acknowledged(workspace: Workspace, book: Book) -> None:
    first = book()
    first.ask("checkpoint")
    first.tick()
    ack(workspace, 9)
    second = book()
    order = second.ask("checkpoint")
    second.tick()
    assert order.seq == 10


def test_an_unacknowledged_rewind_survives_and_a_checkpoint_does_not(workspace: Workspace, book: Book) -> None:
    first = book()
    first.ask("rewind", id="5-aaaaaaaaaaaa")
    first.tick()
    second = book()
    second.before_trainer_start()
    assert (given(workspace)["command"], given(workspace)["id"], given(workspace)["seq"]) == (
        "rewind",
        "5-aaaaaaaaaaaa",
        1,
    )
    ack(workspace, 1)
    second.tick()
    lost = second.ask("checkpoint")
    second.tick()
    second.before_trainer_start()
    assert (given(workspace)["command"], lost.done, lost.note) == ("run", True, "the trainer ended before it")


def test_without_a_trainer_everything_but_skip_and_rewind_is_settled(book: Book) -> None:
    orders = book()
    stop, rewind = orders.ask("checkpoint"), orders.ask("rewind", id="5-aaaaaaaaaaaa")
    orders.settle_without_trainer("3-bbbbbbbbbbbb", 3)
    assert stop.ack == {"seq": None, "step": 3, "checkpoint": "3-bbbbbbbbbbbb"}
    assert not rewind.done
    assert not orders.idle


def test_what_is_written_fits_the_schema(workspace: Workspace, book: Book) -> None:
    orders = book()
    orders.by_hand(True, release_gpu=True, reason="lunch")
    orders.tick()
    jsonschema.validate(given(workspace), json.loads(schema_file("orders").read_text()))
    assert given(workspace)["release_gpu"] is True
