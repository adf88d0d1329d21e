"""Continuous batching over a fake model: requests join, leave, stop and fail one by one; nothing waits for ever."""

from collections.abc import Generator

import numpy as np
import pytest

from core.errors import OverloadedError
from inference.pace import Pace
from inference.sampling import Sampling
from inference.scheduler import SHOWN_EVERY_S, Scheduler
from inference.ticket import Failure, Piece, PromptScores
from scheduler_kit import VOCABULARY, FakeModel, drain, run, scheduler, text_of, ticket


def test_an_answer_ends_with_the_end_token_which_is_counted_but_not_shown() -> None:
    machine, model = scheduler(), FakeModel()
    one = ticket(model)
    machine.submit(one)
    run(machine)
    (piece,) = drain(one)
    assert piece == Piece(0, "cba", ((99, None), (98, None), (97, None)), "stop", 4)
    assert not model.contexts
    assert machine.running == machine.waiting == 0


def test_requests_join_and_leave_between_steps() -> None:
    machine, model = scheduler(), FakeModel()
    long, short = ticket(model, "x" * 50), ticket(model, "ab")
    machine.submit(long)
    run(machine, 10)
    machine.submit(short)
    run(machine, 10)
    assert text_of(short) == "ba"
    assert machine.running == 1
    run(machine)
    assert text_of(long) == "x" * 50
    assert max(width for width, _ in model.widths) == 2


def keep_pace(machine: Scheduler, model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of decoding takes 10 ms, a token of a prompt 0.1 ms; the fake model's own times mean nothing."""
    pace = machine._pace(model)
    pace.learn(0.01, decoding=1, read=0)
    pace.learn(0.1, decoding=0, read=1000)
    monkeypatch.setattr(Pace, "learn", lambda *_: None)


def test_a_long_prompt_is_read_in_pieces_while_others_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, model = scheduler(), FakeModel()
    keep_pace(machine, model, monkeypatch)
    machine.submit(ticket(model, "a" * 300))
    run(machine, 3)
    machine.submit(ticket(model, "b" * 600))
    run(machine, 400)
    assert [read for decoding, read in model.widths if decoding and read] == [96] * 6 + [24]


def test_short_prompts_of_many_that_wait_are_read_whole_before_the_rest_of_a_long_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, model = scheduler(), FakeModel()
    keep_pace(machine, model, monkeypatch)
    machine.submit(ticket(model, "a" * 300))
    run(machine, 1)
    long = ticket(model, "b" * 600)
    machine.submit(long)
    run(machine, 1)
    short = [ticket(model, letter * 40) for letter in "cd"]
    for each in short:
        machine.submit(each)
    run(machine, 1)
    assert [each.choices[0].left for each in short] == [0, 0]
    assert long.choices[0].left > 0


def test_streamed_pieces_come_one_by_one_when_steps_are_slower_than_screens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.scheduler.SHOWN_EVERY_S", 0.0)
    machine, model = scheduler(), FakeModel()
    one = ticket(model, stream=True)
    machine.submit(one)
    run(machine)
    pieces = drain(one)
    assert [p.text for p in pieces] == ["c", "b", "a", ""]
    assert [p.finish_reason for p in pieces] == [None, None, None, "stop"]


def test_the_first_text_of_a_stream_comes_at_once_and_the_next_with_all_that_came_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("inference.scheduler.time.monotonic", lambda: now[0])
    machine, model = scheduler(), FakeModel()
    one = ticket(model, "fedcba", stream=True, logprobs=0)
    machine.submit(one)
    shown: list[list[Piece]] = []
    for passed in (0.0, 0.001, 0.001, SHOWN_EVERY_S, 0.001, 0.001, 0.001):
        now[0] += passed
        run(machine, 1)
        shown.append(drain(one))
    assert [[p.text for p in pieces] for pieces in shown] == [["a"], [], [], ["bcd"], [], [], ["ef"]]
    assert [len(pieces[0].tokens) for pieces in shown if pieces] == [1, 3, 2]
    assert shown[-1][-1].finish_reason == "stop"


@pytest.mark.parametrize("what", ["a slice of work", "a prompt", "a fault", "nothing to see"])
def test_text_that_waits_to_be_shown_goes_out_before_what_may_take_long(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    now = [100.0]
    monkeypatch.setattr("inference.scheduler.time.monotonic", lambda: now[0])
    machine, model = scheduler(), FakeModel()
    one = ticket(model, "fedcba", stream=True, stop=["cx"])
    machine.submit(one)
    run(machine, 1)
    assert [p.text for p in drain(one)] == ["a"]
    expected = "b"
    if what == "a slice of work":
        machine.run_job(iter([None, None]))
    elif what == "a prompt":
        machine.submit(ticket(model, "x" * 2_000))
        run(machine, 1)
        expected = "b"
    elif what == "a fault":
        run(machine, 1)
        model.fail_next = True
    else:  # "c" may begin a stop text, so nothing is added to "b" when its time has come
        run(machine, 1)
        now[0] += SHOWN_EVERY_S
    run(machine, 1)
    shown = drain(one)
    assert shown and isinstance(shown[0], Piece) and shown[0].text == expected


def test_stop_strings_and_lengths_end_an_answer() -> None:
    machine, model = scheduler(), FakeModel()
    stopped, cut = ticket(model, "abcdef", stop=["dc"]), ticket(model, "abcdef", max_tokens=2)
    machine.submit(stopped)
    machine.submit(cut)
    run(machine)
    assert [(p.text, p.finish_reason) for p in drain(stopped)] == [("fe", "stop")]
    assert [(p.text, p.finish_reason) for p in drain(cut)] == [("fe", "length")]
    assert not model.contexts


def test_the_context_ends_an_answer_too() -> None:
    machine, model = scheduler(), FakeModel()
    model.max_context_tokens = 8
    one = ticket(model, "abcdef")
    machine.submit(one)
    run(machine)
    assert [(p.text, p.finish_reason) for p in drain(one)] == [("fe", "length")]


def test_a_cancelled_request_leaves_within_one_step_wherever_it_is() -> None:
    machine, model = scheduler(max_streams=1), FakeModel()
    active, waiting = ticket(model, "x" * 90), ticket(model)
    machine.submit(active)
    machine.submit(waiting)
    run(machine, 3)
    machine.cancel(active)
    machine.cancel(waiting)
    run(machine, 1)
    assert machine.running == machine.waiting == 0
    assert not model.contexts
    assert not drain(waiting)


def test_a_caller_that_has_left_costs_no_further_step_though_nobody_says_so() -> None:
    machine, model = scheduler(max_streams=1), FakeModel()
    left: list[str] = []
    active = ticket(model, "x" * 90, gone=lambda: "active" in left)
    waiting = ticket(model, gone=lambda: "waiting" in left)
    machine.submit(active)
    machine.submit(waiting)
    run(machine, 3)
    left.append("waiting")
    run(machine, 1)
    assert (machine.running, machine.waiting) == (1, 0)
    steps = len(model.widths)
    left.append("active")
    run(machine, 1)
    assert len(model.widths) == steps
    assert machine.running == 0
    assert not model.contexts


def test_the_waiting_room_is_bounded() -> None:
    machine, model = scheduler(max_waiting=2), FakeModel()
    machine.submit(ticket(model))
    machine.submit(ticket(model))
    with pytest.raises(OverloadedError):
        machine.submit(ticket(model))


def test_no_more_streams_than_allowed_and_choices_count() -> None:
    machine, model = scheduler(max_streams=3), FakeModel()
    tickets = [ticket(model, "abcdefgh", n=2) for _ in range(4)]
    for one in tickets:
        machine.submit(one)
    run(machine, 300)
    assert max(width for width, _ in model.widths) <= 3
    assert all(sorted(p.choice for p in drain(one)) == [0, 1] for one in tickets)


def test_a_model_that_fails_fails_its_own_requests_only() -> None:
    machine, broken, healthy = scheduler(), FakeModel(), FakeModel()
    bad, good = ticket(broken), ticket(healthy)
    broken.fail_next = True
    machine.submit(bad)
    machine.submit(good)
    run(machine)
    (event,) = drain(bad)
    assert isinstance(event, Failure)
    assert text_of(good) == "cba"
    assert not broken.contexts


def test_logits_that_are_not_numbers_fail_the_request() -> None:
    machine, model = scheduler(), FakeModel()
    model._next = lambda context: np.full(VOCABULARY, np.nan, dtype=np.float32)  # type: ignore[method-assign]
    greedy, drawn = ticket(model), ticket(model, sampling=Sampling(seed=1))
    machine.submit(greedy)
    machine.submit(drawn)
    run(machine, 5)
    assert all(isinstance(e, Failure) for one in (greedy, drawn) for e in drain(one))
    assert not model.contexts


def test_a_scored_prompt_reports_every_token_and_generates_nothing() -> None:
    machine, model = scheduler(step_tokens=64), FakeModel()
    one = ticket(model, "abcdefghij" * 20, max_tokens=0, logprobs=0, score_prompt=True)
    machine.submit(one)
    run(machine)
    scores, piece = drain(one)
    assert isinstance(scores, PromptScores)
    assert len(scores.scores) == 200
    assert len(model.widths) == 4
    assert scores.scores[0] is None
    assert all(s is not None for s in scores.scores[1:])
    assert isinstance(piece, Piece)
    assert piece.completion_tokens == 0


def test_work_on_models_runs_in_slices_between_steps_and_hands_back_its_result_or_error() -> None:
    machine, model = scheduler(), FakeModel()
    machine.submit(ticket(model, "x" * 30))

    def work() -> Generator[None, None, str]:
        for _ in range(3):
            yield
        return "done"

    def broken() -> Generator[None, None, None]:
        yield
        raise ValueError("no")

    first, second = machine.run_job(work()), machine.run_job(broken())
    before = len(model.widths)
    run(machine, 3)
    assert not first.done()
    run(machine, 4)
    assert first.result(0) == "done"
    assert isinstance(second.exception(0), ValueError)
    assert len(model.widths) - before == 7


def test_a_stopping_scheduler_finishes_what_runs_and_takes_nothing_new() -> None:
    machine, model = scheduler(), FakeModel()
    one = ticket(model, "x" * 50)
    machine.start()
    machine.submit(one)
    assert machine.stop(20)
    assert text_of(one) == "x" * 50
    with pytest.raises(OverloadedError):
        machine.submit(ticket(model))
    with pytest.raises(OverloadedError):
        machine.run_job(iter(()))  # type: ignore[arg-type]


def test_a_thousand_random_requests_are_all_answered_right_and_leave_nothing_behind() -> None:
    machine, model = scheduler(max_streams=7, max_waiting=1000, step_tokens=64), FakeModel()
    random = np.random.default_rng(3)
    texts = ["".join(chr(random.integers(97, 122)) for _ in range(random.integers(1, 40))) for _ in range(300)]
    tickets = [ticket(model, text) for text in texts]
    cancelled = set(random.choice(300, 40, replace=False).tolist())
    for one in tickets:
        machine.submit(one)
    for turn in range(4000):
        machine.tick()
        if turn < 300 and turn in cancelled:
            machine.cancel(tickets[turn])
    for place, (one, text) in enumerate(zip(tickets, texts, strict=True)):
        if place not in cancelled:
            assert text_of(one) == text[::-1]
    assert not model.contexts
    assert machine.running == machine.waiting == 0
