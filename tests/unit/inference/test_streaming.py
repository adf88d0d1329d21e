"""What goes over the wire while an answer is made: pings when nothing comes, an error object when it breaks off."""

import json
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from inference import answering, answers
from inference.answering import Answer
from inference.app import _stream
from inference.protocol import GenerationRequest, chat_request
from inference.sampling import Sampling
from inference.ticket import Failure, Piece, Ticket
from inference.token_names import TokenNames


class Letters:
    eos_ids = frozenset({0})

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))


class Machine:
    """A scheduler that is alive and remembers who was cancelled; and whether the caller is gone."""

    alive = True
    gone = False

    def __init__(self) -> None:
        self.cancelled: list[Ticket] = []

    def cancel(self, ticket: Ticket) -> None:
        self.cancelled.append(ticket)


class Table:
    released = 0

    def release(self, slot: object) -> None:
        self.released += 1


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def answer(machine: Machine, table: Table) -> Answer:
    codec: Any = Letters()
    model: Any = SimpleNamespace(max_context_tokens=100, memory_tokens=100)
    ticket = Ticket(model, codec, [104, 105], sampling=Sampling(), max_tokens=5, stream=True)
    slot: Any = SimpleNamespace(id="7-aaaaaaaaaaaa", encoder=codec, names=TokenNames(codec))
    fakes: Any = (machine, table)
    return Answer(*fakes, slot, [ticket], lambda: machine.gone)


def asked() -> GenerationRequest:
    return chat_request({"messages": [{"role": "user", "content": "hi"}], "stream": True})


def wire(answer: Answer) -> Iterator[bytes]:
    return _stream(asked(), answer, answers.Shape(asked(), answer))


def piece(text: str, reason: str | None) -> Piece:
    return Piece(0, text, (), reason, 1)


def test_a_comment_is_sent_while_nothing_comes_and_the_stream_goes_on(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    assert answering.PING_EVERY_S == 15
    monkeypatch.setattr(answering, "PING_EVERY_S", 0.01)
    monkeypatch.setattr(answering, "_LOOK_EVERY_S", 0.01)
    sent = wire(answer)
    assert b'"role":"assistant"' in next(sent)
    assert [next(sent), next(sent)] == [b": ping\n\n"] * 2
    answer.tickets[0].events.put(piece("ok", "stop"))
    rest = b"".join(part for part in sent if part != b": ping\n\n")
    assert rest.endswith(b"data: [DONE]\n\n")
    assert b'"content":"ok"' in rest
    assert table.released == 1


@pytest.mark.parametrize(("param", "kind"), [(None, "server_error"), ("response_format", "invalid_request_error")])
def test_an_answer_that_breaks_off_ends_with_an_error_object_and_no_done(
    answer: Answer, machine: Machine, table: Table, param: str | None, kind: str
) -> None:
    answer.tickets[0].events.put(piece("par", None))
    answer.tickets[0].events.put(Failure("the model failed in this step", param))
    *_, last = wire(answer)
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["message"] == "the model failed in this step"
    assert (error["type"], error["param"]) == (kind, param)
    assert machine.cancelled == [*answer.tickets]
    assert table.released == 1


def test_when_the_caller_is_gone_the_stream_ends_and_its_choices_are_cancelled(
    answer: Answer, machine: Machine, table: Table
) -> None:
    threading.Timer(0.05, answer.tickets[0].events.put, [piece("more", None)]).start()
    machine.gone = True
    assert len(list(wire(answer))) <= 2
    assert machine.cancelled == [*answer.tickets]
    assert table.released == 1
