"""The generation thread: continuous batching over every model that has requests (inside the inference server; torch-
free).

Requests join and leave between two steps. A step holds one token of every decoding choice plus a chunk of the prompts
that wait to be
read; the chunk is kept small while others decode, so a long prompt does not freeze them. Work on models (loading,
packing, the gate) runs
here too, one slice between two steps, because a second thread with torch in it slows both (docs/log.md, Serving).

Errors   OverloadedError when the waiting room is full; a model that raises fails its own requests only
Effects  none on disk                                    Used by `app` (submit, cancel) and `deploy` (run_job)
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar  # Any: a job's result has its own type, kept by Future[T] at the call

from core.errors import OverloadedError
from inference.generation import TILE_TOKENS, Chunk, Model, StepResult
from inference.metrics import ServerMetrics
from inference.pace import Budget, Pace
from inference.sampling import RuleError, score_row
from inference.ticket import Choice, Event, Failure, Piece, PromptScores, Ticket

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A stream gets its first text at once, then as often as screens are drawn. Every piece wakes a handler, whose Python
# and sending take a tenth of a small model's step from the threads that compute (docs/log.md, Serving).
SHOWN_EVERY_S = 1 / 60


@dataclass(slots=True)
class _Job:
    work: Generator[None, None, Any]
    future: "Future[Any]" = field(default_factory=Future)


class Scheduler:
    """Owns the order of work. `tick` does one round; `run` is the thread's loop."""

    def __init__(self, *, max_streams: int, max_waiting: int, metrics: ServerMetrics, step_tokens: int = 512) -> None:
        """Args: max_streams: choices generated at once; max_waiting: requests that may wait; step_tokens: largest
        prompt chunk.
        """
        self.max_streams = max_streams
        self._max_waiting = max_waiting
        self._step_tokens = step_tokens
        self._metrics = metrics
        self._wake = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._jobs: deque[_Job] = deque()
        self._active: list[Choice] = []
        self._outbox: list[tuple[queue.SimpleQueue[Event], Event]] = []
        self._paces: dict[int, Pace] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name="generation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, ticket: Ticket) -> None:
        """Queue a request. Raises OverloadedError when too many wait or the server is going down."""
        with self._wake:
            if self._stopping:
                raise OverloadedError("the server is shutting down", fix="ask again in a few seconds")
            if len(self._waiting) >= self._max_waiting:
                raise OverloadedError(f"{len(self._waiting)} requests wait already", fix="ask again in a few seconds")
            self._waiting.append(ticket)
            self._wake.notify()

    def cancel(self, ticket: Ticket) -> None:
        """The caller is gone: its choices stop before the next step."""
        with self._wake:
            ticket.cancelled = True
            self._wake.notify()

    def run_job(self, work: Generator[None, None, T]) -> "Future[T]":
        """Run a generator on the generation thread, one `next` between two steps. Returns the future of its result."""
        job = _Job(work)
        with self._wake:
            if self._stopping:
                raise OverloadedError("the server is shutting down", fix="start it again, then publish again")
            self._jobs.append(job)
            self._wake.notify()
        return job.future

    def slots_view(self) -> list[dict[str, object]]:
        """The active streams, for people: no text, no prompts."""
        now = time.monotonic()
        return [
            {
                "choice": choice.index,
                "prompt_tokens": len(choice.ticket.prompt_ids),
                "read_tokens": choice.read,
                "completion_tokens": choice.produced,
                "age_s": round(now - choice.ticket.created_s, 3),
            }
            for choice in list(self._active)
        ]

    def stop(self, grace_s: float) -> bool:
        """Take nothing new, finish what is under way within `grace_s` seconds. Returns True when all was finished."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(grace_s)
        return not self._thread.is_alive()

    def run(self) -> None:
        while True:
            with self._wake:
                while not self._has_work():
                    if self._stopping:
                        return
                    self._wake.wait()
            try:
                self.tick()
            except Exception:
                # The loop's edge: whatever went wrong belongs to requests, which are failed; the thread must live.
                logger.exception("a generation step failed outside any model")
                self._fail(list(self._active), "the server failed in this step")

    def _has_work(self) -> bool:
        return bool(self._active or self._waiting or self._jobs)

    def tick(self) -> None:
        """One round: drop the cancelled, run a slice of model work, admit, one step of every model with choices."""
        self._drop_cancelled()
        self._run_slice()
        self._admit()
        models: dict[int, list[Choice]] = {}
        for choice in self._active:
            models.setdefault(id(choice.ticket.model), []).append(choice)
        for choices in models.values():
            self._cut_to_memory(choices)
            if left := [choice for choice in choices if not choice.finished]:
                self._step(left)
        self._active = [choice for choice in self._active if not choice.finished]
        self._metrics.load(len(self._active), len(self._waiting))
        self._show()
        self._hand_out()

    def _show(self) -> None:
        """Send what streams have to show: when it is due, and all of it before a round that may take long."""
        slow_next = self._waiting or self._jobs or any(choice.reading for choice in self._active)
        now = time.monotonic()
        for choice in self._active:
            if choice.shows and (slow_next or now >= choice.show_at_s):
                self._send(choice, choice.unsent_text, None)

    def _hand_out(self) -> None:
        """Everything of a round at once: a handler woken earlier would hold Python's lock between two choices."""
        for events, event in self._outbox:
            events.put(event)
        self._outbox.clear()

    def _drop_cancelled(self) -> None:
        with self._wake:
            gone = [ticket for ticket in self._waiting if ticket.cancelled]
            for ticket in gone:
                self._waiting.remove(ticket)
                ticket.release()
        for choice in self._active:
            if choice.ticket.cancelled:
                self._close(choice)
        self._active = [choice for choice in self._active if not choice.finished]

    def _run_slice(self) -> None:
        if not self._jobs:
            return
        job = self._jobs[0]
        try:
            next(job.work)
            return
        except StopIteration as end:
            job.future.set_result(end.value)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits on the future, with its traceback
            job.future.set_exception(error)
        self._jobs.popleft()

    def _admit(self) -> None:
        while True:
            with self._wake:
                if not self._waiting or not self._fits(self._waiting[0]):
                    return
                ticket = self._waiting.popleft()
            for choice in ticket.choices:
                if self._open(choice):
                    self._active.append(choice)

    def _fits(self, ticket: Ticket) -> bool:
        """Whether streams and memory are free for a request; when nothing runs, one always fits."""
        if len(self._active) + len(ticket.choices) > self.max_streams:
            return False
        model = ticket.model
        held = sum(_held(choice) for choice in self._active if choice.ticket.model is model)
        return not held or held + sum(map(_held, ticket.choices)) <= model.memory_tokens

    def _cut_to_memory(self, choices: list[Choice]) -> None:
        """When answers without a limit have grown beyond the memory, the longest of them end with `length`."""
        model = choices[0].ticket.model
        if self.max_streams * model.max_context_tokens <= model.memory_tokens:
            return
        over = sum(map(_held, choices)) - model.memory_tokens
        growing = sorted((c for c in choices if c.ticket.open_ended and c.produced), key=lambda c: c.memory_tokens)
        while over > 0 and growing:
            longest = growing.pop()
            over -= _held(longest)
            self._finish(longest, "length")

    def _open(self, choice: Choice) -> bool:
        ticket = choice.ticket
        try:
            # A scored prompt is read from its first token: every position's logits are wanted.
            shared = () if ticket.score_prompt else ticket.prompt_ids
            choice.context, choice.read = ticket.model.open(shared)
        except Exception:
            logger.exception("a context could not be opened")
            self._fail([choice], "the model could not begin this request")
            return False
        ticket.cached_tokens = choice.read
        return True

    def _step(self, choices: list[Choice]) -> None:
        model = choices[0].ticket.model
        decoding = {c.context: c for c in choices if not c.reading and c.context is not None}
        waiting = sum(0 < choice.left <= self._step_tokens and not choice.cut for choice in choices)
        chunks, readers = _chunks(choices, self._pace(model).budget(self._step_tokens, len(decoding), waiting))
        began = time.perf_counter()
        try:
            result = model.step({context: c.last_token for context, c in decoding.items()}, chunks)
        except Exception:
            logger.exception("a model step failed")
            self._fail(choices, "the model failed in this step")
            return
        read = sum(len(chunk.ids) for chunk in chunks)
        self._pace(model).learn(time.perf_counter() - began, len(decoding), read)
        self._metrics.step(prompt_tokens=read, generated_tokens=len(result.logits), seconds=time.perf_counter() - began)
        self._take_scores(result, chunks, readers)
        for context, choice in (decoding | readers).items():
            if context in result.logits and not choice.finished:
                self._advance(choice, result.logits[context])

    def _pace(self, model: Model) -> Pace:
        if len(self._paces) > 16:
            self._paces.clear()  # ids of models that are gone
        return self._paces.setdefault(id(model), Pace())

    def _take_scores(self, result: StepResult, chunks: list[Chunk], readers: dict[int, Choice]) -> None:
        for chunk in chunks:
            ticket = readers[chunk.context].ticket
            if not ticket.score_prompt or readers[chunk.context].index:
                continue
            ticket.prompt_scores.extend(result.scores.get(chunk.context, []))
            if chunk.last:
                scores = PromptScores(ticket.prompt, tuple(ticket.prompt_scores[: len(ticket.prompt_ids)]))
                self._outbox.append((ticket.events, scores))
        for chunk in chunks:
            if chunk.last and readers[chunk.context].ticket.max_tokens == 0:
                self._finish(readers[chunk.context], "length")

    def _advance(self, choice: Choice, logits_V: "Any") -> None:  # an array; sampling states its shape
        """Draw the next token of a choice and hand out what it makes visible."""
        ticket = choice.ticket
        try:
            token = choice.sampler.draw(logits_V)
            score = None if ticket.logprobs is None else score_row(logits_V, token, ticket.logprobs)
        except RuleError as error:
            self._fail([choice], str(error), "response_format")
            return
        except (FloatingPointError, ValueError):
            logger.exception("logits that nothing can be drawn from")
            self._fail([choice], "the model produced no usable probabilities")
            return
        choice.produced += 1
        choice.last_token = token
        if ticket.first_token_s is None:
            ticket.first_token_s = time.monotonic()
            self._metrics.first_token(ticket.first_token_s - ticket.created_s)
        if token in ticket.codec.eos_ids:
            self._finish(choice, "stop")
            return
        choice.unsent.append((token, score))
        text = choice.assembler.push(token)
        if choice.assembler.stopped or (choice.rule is not None and choice.rule.ended):
            self._finish(choice, "stop", text)
        elif choice.produced >= ticket.max_tokens or self._full(choice):
            self._finish(choice, "length", text)
        elif ticket.stream:
            choice.unsent_text += text

    def _full(self, choice: Choice) -> bool:
        return len(choice.ticket.prompt_ids) + choice.produced >= choice.ticket.model.max_context_tokens

    def _finish(self, choice: Choice, reason: str, text: str = "") -> None:
        text += choice.assembler.finish()
        if reason == "stop" and choice.rule is not None and not choice.rule.kept_by(choice.assembler.text):
            reason = "length"  # a stop text cut it, or a key stands twice: "stop" is said of whole documents only
        self._send(choice, choice.unsent_text + text if choice.ticket.stream else choice.assembler.text, reason)
        self._metrics.finished(reason)
        self._close(choice)

    def _send(self, choice: Choice, text: str, reason: str | None) -> None:
        place = choice.ticket.prompt * choice.ticket.n + choice.index
        piece = Piece(place, text, tuple(choice.unsent), reason, choice.produced)
        choice.unsent, choice.unsent_text = [], ""
        choice.show_at_s = time.monotonic() + SHOWN_EVERY_S
        self._outbox.append((choice.ticket.events, piece))

    def _fail(self, choices: list[Choice], message: str, param: str | None = None) -> None:
        for choice in choices:
            if not choice.finished:
                if choice.shows:
                    self._send(choice, choice.unsent_text, None)
                self._outbox.append((choice.ticket.events, Failure(message, param)))
                self._metrics.finished("error")
                self._close(choice)

    def _close(self, choice: Choice) -> None:
        choice.finished = True
        if choice.ticket.done:
            choice.ticket.release()
        context, choice.context = choice.context, None
        if context is None:
            return
        try:
            choice.ticket.model.close(context)
        except Exception:
            logger.exception("a context could not be closed")


def _held(choice: Choice) -> int:
    """Tokens of memory to keep free for a choice; a short context takes more than it has."""
    return max(choice.memory_tokens, choice.ticket.model.least_tokens)


def _chunks(choices: list[Choice], budget: Budget) -> tuple[list[Chunk], dict[int, Choice]]:
    """What the next step reads, and of whom by context; the oldest first, but whole prompts pass those that are cut."""
    chunks: list[Chunk] = []
    readers: dict[int, Choice] = {}
    read = 0
    for choice in choices:
        if not choice.reading or choice.context is None:
            continue
        room = max(0, (budget.pieces if choice.cut else budget.whole) - read)
        piece = max(0, budget.pieces - read)
        take = choice.left if choice.left <= room else piece - piece % TILE_TOKENS
        if not take:
            continue
        choice.cut = take < choice.left
        ids = choice.ticket.prompt_ids[choice.read : choice.read + take]
        chunks.append(_chunk(choice, ids))
        readers[choice.context] = choice
        choice.read += len(ids)
        read += len(ids)
    return chunks, readers


def _chunk(choice: Choice, ids: tuple[int, ...]) -> Chunk:
    ticket, context = choice.ticket, choice.context
    assert context is not None  # noqa: S101 - only opened choices get here
    end = choice.read + len(ids)
    last = end == len(ticket.prompt_ids)
    if not ticket.score_prompt or choice.index:
        return Chunk(context, ids, last)
    following = ticket.prompt_ids[choice.read + 1 : end + 1]
    targets: list[int | None] = [*following, *([None] * (len(ids) - len(following)))]
    return Chunk(context, ids, last, targets, ticket.logprobs or 0)
