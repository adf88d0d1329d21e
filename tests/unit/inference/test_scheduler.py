"""Continuous batching over a fake model: requests join, leave, stop and fail one by one; nothing waits for ever."""

import gc
import queue
import weakref
from collections.abc import Generator, Sequence

import numpy as np
import pytest

from core.errors import OverloadedError
from inference.generation import TILE_TOKENS, Chunk, StepResult, TokenScore
from inference.metrics import ServerMetrics
from inference.sampling import RuleError, Sampling
from inference.scheduler import Scheduler
from inference.ticket import Failure, Piece, PromptScores, Ticket

VOCABULARY = 256
END = 0


class FakeModel:
    """Answers with the prompt backwards, then the end token. Keeps the contract of Model and checks that callers do."""

    max_context_tokens = 1000
    memory_tokens = 1_000_000
    vocabulary = VOCABULARY

    def __init__(self) -> None:
        self.contexts: dict[int, list[int]] = {}
        self.decoding: dict[int, list[int]] = {}
        self.widths: list[tuple[int, int]] = []
        self.fail_next = False
        self.handles = 0

    def open(self, ids: Sequence[int]) -> tuple[int, int]:
        self.handles += 1
        self.contexts[self.handles] = []
        return self.handles, 0

    def step(self, decode: dict[int, int], chunks: Sequence[Chunk]) -> StepResult:
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("out of memory")
        assert set(decode) == set(self.decoding), "every decoding context needs its token"
        self.widths.append((len(decode), sum(len(c.ids) for c in chunks)))
        result = StepResult()
        for context in decode:
            result.logits[context] = self._next(context)
        for chunk in chunks:
            self.contexts[chunk.context] += chunk.ids
            assert chunk.last or len(chunk.ids) % TILE_TOKENS == 0
            if chunk.targets is not None:
                result.scores[chunk.context] = [TokenScore(-1.0) for t in chunk.targets if t is not None]
            if chunk.last:
                self.decoding[chunk.context] = [*reversed(self.contexts[chunk.context]), END]
                result.logits[chunk.context] = self._next(chunk.context)
        return result

    def _next(self, context: int) -> np.ndarray:
        logits = np.zeros(VOCABULARY, dtype=np.float32)
        logits[self.decoding[context].pop(0)] = 10
        return logits

    def close(self, context: int) -> None:
        del self.contexts[context]
        self.decoding.pop(context, None)


class Letters:
    eos_ids = frozenset({END})

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))


def scheduler(max_streams: int = 8, max_waiting: int = 8, step_tokens: int = 512) -> Scheduler:
    return Scheduler(max_streams=max_streams, max_waiting=max_waiting, metrics=ServerMetrics(), step_tokens=step_tokens)


def ticket(model: FakeModel, text: str = "abc", **options: object) -> Ticket:
    given = {"sampling": Sampling(temperature=0), "max_tokens": 100, **options}
    return Ticket(model, Letters(), [ord(c) for c in text], **given)


def drain(one: Ticket) -> list[object]:
    events = []
    while True:
        try:
            events.append(one.events.get_nowait())
        except queue.Empty:
            return events


def run(machine: Scheduler, ticks: int = 200) -> None:
    for _ in range(ticks):
        machine.tick()


def text_of(one: Ticket) -> str:
    return "".join(e.text for e in drain(one) if isinstance(e, Piece))


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


def test_a_long_prompt_is_read_in_pieces_while_others_decode() -> None:
    machine, model = scheduler(), FakeModel()
    machine.submit(ticket(model, "a" * 300))
    run(machine, 3)
    machine.submit(ticket(model, "b" * 600))
    run(machine, 400)
    both = [read for decoding, read in model.widths if decoding and read]
    assert len(both) > 3
    assert max(both) <= 512


def test_short_prompts_of_many_that_wait_are_read_whole_before_the_rest_of_a_long_one() -> None:
    machine, model = scheduler(), FakeModel()
    machine._pace(model).learn(0.01, decoding=1, read=0)
    machine._pace(model).learn(0.1, decoding=0, read=1000)
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


def test_streamed_pieces_come_one_by_one() -> None:
    machine, model = scheduler(), FakeModel()
    one = ticket(model, stream=True)
    machine.submit(one)
    run(machine)
    pieces = drain(one)
    assert [p.text for p in pieces] == ["c", "b", "a", ""]
    assert [p.finish_reason for p in pieces] == [None, None, None, "stop"]


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
