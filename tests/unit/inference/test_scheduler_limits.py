"""Answers that must keep to a rule, and requests that share the memory of one model."""

import gc
import weakref

import numpy as np

from inference.sampling import RuleError
from inference.ticket import Failure, Piece
from scheduler_kit import FakeModel, drain, run, scheduler, text_of, ticket


class Backwards:
    """A rule that wants `cba` and nothing else."""

    def __init__(self) -> None:
        self.taken = ""

    def restrict(self, scores_V: np.ndarray) -> None:
        if self.taken == "cb":
            raise RuleError("response_format: too hard")

    def take(self, token: int) -> None:
        self.taken += chr(token)

    @property
    def ended(self) -> bool:
        return self.taken == "edcba"

    def kept_by(self, text: str) -> bool:
        return text == "edcba"


def test_an_answer_that_fulfils_its_rule_ends_at_once_and_says_stop() -> None:
    machine, model = scheduler(), FakeModel()
    one = ticket(model, "abcde", rules=[Backwards()])
    machine.submit(one)
    run(machine)
    (piece,) = drain(one)
    assert (piece.text, piece.finish_reason, piece.completion_tokens) == ("edcba", "stop", 5)


def test_an_answer_that_a_stop_text_cuts_before_its_rule_is_fulfilled_says_length() -> None:
    machine, model = scheduler(), FakeModel()
    one = ticket(model, "abcde", rules=[Backwards()], stop=["b"])
    machine.submit(one)
    run(machine)
    (piece,) = drain(one)
    assert (piece.text, piece.finish_reason) == ("edc", "length")


def test_a_rule_that_cannot_be_followed_any_further_fails_its_choice_alone_and_names_the_field() -> None:
    machine, model = scheduler(), FakeModel()
    hard, other = ticket(model, "abc", rules=[Backwards()]), ticket(model, "xyz")
    for one in (hard, other):
        machine.submit(one)
    run(machine)
    assert drain(hard) == [Failure("response_format: too hard", "response_format")]
    assert text_of(other) == "zyx"
    assert not model.contexts


def test_a_request_waits_until_the_memory_it_may_need_is_free() -> None:
    machine, model = scheduler(), FakeModel()
    model.memory_tokens = 250
    first, second = ticket(model, "x" * 50, max_tokens=100), ticket(model, "y" * 50, max_tokens=100)
    for one in (first, second):
        machine.submit(one)
    machine.tick()
    assert (machine.running, machine.waiting) == (1, 1)
    run(machine)
    assert (text_of(first), text_of(second)) == ("x" * 50, "y" * 50)


def test_answers_without_a_limit_run_together_and_the_longest_ends_when_memory_does() -> None:
    machine, model = scheduler(), FakeModel()
    model.memory_tokens = 200
    long, short = ticket(model, "x" * 90, open_ended=True), ticket(model, "y" * 60, open_ended=True)
    for one in (long, short):
        machine.submit(one)
    machine.tick()
    assert machine.running == 2
    run(machine)
    (piece,) = drain(long)
    assert piece.finish_reason == "length"
    assert 0 < piece.completion_tokens < 90
    assert text_of(short) == "y" * 60
    assert not model.contexts


def test_an_answer_that_outgrows_the_memory_alone_costs_the_requests_of_other_models_nothing() -> None:
    machine, narrow, wide = scheduler(), FakeModel(), FakeModel()
    narrow.memory_tokens = 60
    growing, other = ticket(narrow, "x" * 50, open_ended=True), ticket(wide, "y" * 90)
    machine.submit(growing)
    machine.submit(other)
    run(machine)
    (piece,) = drain(growing)
    assert piece.finish_reason == "length" and 0 < piece.completion_tokens < 50
    assert text_of(other) == "y" * 90


def test_short_requests_count_with_the_memory_that_even_the_shortest_takes() -> None:
    machine, model = scheduler(), FakeModel()
    model.memory_tokens, model.least_tokens = 300, 128
    for _ in range(4):
        machine.submit(ticket(model, max_tokens=4))
    machine.tick()
    assert (machine.running, machine.waiting) == (2, 2)


def test_a_round_that_fails_outside_any_model_tells_its_requests_and_the_next_one_is_answered() -> None:
    machine, model = scheduler(), FakeModel()
    faults = iter([RuntimeError("no more room for metrics")])

    def load(_running: int, _waiting: int) -> None:
        if fault := next(faults, None):
            raise fault

    machine._metrics.load = load
    unlucky = ticket(model, "abc", stream=True)
    machine.submit(unlucky)
    machine.start()
    first, then = (unlucky.events.get(timeout=10) for _ in range(2))
    assert isinstance(first, Piece)  # drawn before the fault
    assert then == Failure("the server failed in this step")
    lucky = ticket(model, "xyz")
    machine.submit(lucky)
    assert lucky.events.get(timeout=10).text == "zyx"
    assert machine.stop(10)


def test_other_models_have_memory_of_their_own() -> None:
    machine, one_model, other = scheduler(), FakeModel(), FakeModel()
    one_model.memory_tokens = other.memory_tokens = 160
    for model in (one_model, other):
        machine.submit(ticket(model, "x" * 50, max_tokens=100))
    machine.tick()
    assert machine.running == 2


def test_a_request_that_is_over_holds_its_model_no_longer_than_those_who_asked_do() -> None:
    machine, model = scheduler(), FakeModel()
    there = weakref.ref(model)
    done, one, left, never = (ticket(model, n=2), ticket(model, "x"), ticket(model), ticket(model))
    gc.collect()
    gc.disable()
    try:
        for each in (done, one, left):
            machine.submit(each)
        machine.tick()
        machine.cancel(left)
        run(machine)
        machine.submit(never)
        machine.cancel(never)
        run(machine)
        del model, done, one, left, never, each
        assert there() is None
    finally:
        gc.enable()
