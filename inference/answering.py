"""From a checked request to the events of its answer, and its end in every case (inside the inference server; torch-
free).

However an answer ends (done, failed, the caller gone, the server going down), its choices leave the scheduler and its
model is released
exactly once.
"""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from core.errors import DropforgeError, InternalError
from core.template_text import TemplateRefusedError
from inference.protocol import GenerationRequest, RequestError, ScoreRequest
from inference.sampling import Sampling
from inference.scheduler import Scheduler
from inference.slot_table import SlotTable
from inference.ticket import Event, Failure, Piece, PromptScores, Ticket

if TYPE_CHECKING:  # the slot's module imports torch; requests only use its encoder and model
    from inference.model_slot import ModelSlot

PING_EVERY_S = 15.0
_LOOK_EVERY_S = 0.2  # how often a waiting handler looks whether its caller is still there


class GenerationFailedError(InternalError):
    """The model failed while it answered this request."""

    slug = "generation_failed"


class CallerGoneError(InternalError):
    """Nobody reads the answer any more."""

    slug = "caller_gone"
    http_status = 499  # nginx's number for it; nobody reads this answer, only the metrics


class Answer:
    """The tickets of one request on one model."""

    def __init__(
        self,
        scheduler: Scheduler,
        table: SlotTable,
        slot: "ModelSlot",
        tickets: Sequence[Ticket],
        gone: Callable[[], bool],
    ) -> None:
        """Args: gone: tells whether the caller has left; cheap, and may be asked from any thread."""
        self._scheduler = scheduler
        self._table = table
        self._gone = gone
        self._closed = False
        self.slot = slot
        self.tickets = tickets
        self.prompt_tokens = sum(len(ticket.prompt_ids) for ticket in tickets)

    @property
    def cached_tokens(self) -> int:
        return sum(ticket.cached_tokens for ticket in self.tickets)

    def submit(self) -> None:
        """Queue all tickets. Raises OverloadedError; the answer is closed then."""
        try:
            for ticket in self.tickets:
                self._scheduler.submit(ticket)
        except BaseException:
            self.close()
            raise

    def events(self) -> Iterator[Event | None]:
        """Pieces and prompt scores as they come; None when a ping is due. Ends after the last choice; always closes the
        answer.

        Raises:
            CallerGoneError: the caller left. GenerationFailedError: the model failed. RequestError: only now
            could be seen that what was asked cannot be done.
        """
        try:
            left = sum(ticket.n for ticket in self.tickets)
            ping_at = time.monotonic() + PING_EVERY_S
            while left:
                try:
                    event = self.tickets[0].events.get(timeout=_LOOK_EVERY_S)
                except queue.Empty:
                    if self._gone():
                        raise CallerGoneError("the caller went away") from None
                    if not self._scheduler.alive:
                        raise GenerationFailedError("the generation thread has ended") from None
                    if time.monotonic() >= ping_at:
                        ping_at = time.monotonic() + PING_EVERY_S
                        yield None
                    continue
                if isinstance(event, Failure):
                    raise _failed(event)
                left -= isinstance(event, Piece) and event.finish_reason is not None
                yield event
                if self._gone():
                    raise CallerGoneError("the caller went away")
        finally:
            self.close()

    def close(self) -> None:
        """Stop what still runs and release the model; harmless when done before."""
        if self._closed:
            return
        self._closed = True
        for ticket in self.tickets:
            if not ticket.done:
                self._scheduler.cancel(ticket)
        self._table.release(self.slot)


def _failed(event: Failure) -> DropforgeError:
    if event.param is not None:
        return RequestError(event.message, param=event.param)
    return GenerationFailedError(event.message)


class Answering:
    """Makes answers. Thread-safe."""

    def __init__(self, scheduler: Scheduler, table: SlotTable) -> None:
        self._scheduler = scheduler
        self._table = table

    def generate(
        self, asked: GenerationRequest, acquire: "Callable[[str], ModelSlot]", gone: Callable[[], bool]
    ) -> Answer:
        """Start a request for text. Raises RequestError (prompt too long, bad token id), NotFoundError,
        OverloadedError.
        """
        if asked.n * max(1, len(asked.prompts)) > self._scheduler.max_streams:
            raise RequestError(f"n: at most {self._scheduler.max_streams} choices a request", param="n")
        return self._start(asked.model, acquire, lambda slot: _tickets(asked, slot, gone), gone)

    def score(self, asked: ScoreRequest, acquire: "Callable[[str], ModelSlot]", gone: Callable[[], bool]) -> Answer:
        """Start a request for the loss of a text. Raises as `generate`."""
        return self._start(asked.model, acquire, lambda slot: [_score_ticket(asked, slot, gone)], gone)

    def _start(
        self,
        model: str,
        acquire: "Callable[[str], ModelSlot]",
        make: "Callable[[ModelSlot], list[Ticket]]",
        gone: Callable[[], bool],
    ) -> Answer:
        slot = acquire(model)
        try:
            tickets = make(slot)
        except BaseException:
            self._table.release(slot)
            raise
        answer = Answer(self._scheduler, self._table, slot, tickets, gone)
        answer.submit()
        return answer


def _tickets(asked: GenerationRequest, slot: "ModelSlot", gone: Callable[[], bool]) -> list[Ticket]:
    prompts = [_chat_ids(asked, slot)] if asked.messages is not None else [_prompt_ids(p, slot) for p in asked.prompts]
    _check_bias(asked.sampling, slot)
    rules = () if asked.schema is None else slot.constraints.rules(asked.schema, asked.n)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    tickets = [
        Ticket(
            slot.model,
            slot.encoder,
            ids,
            sampling=asked.sampling,
            max_tokens=_room(asked, slot, ids, len(prompts)),
            n=asked.n,
            stop=asked.stop,
            stream=asked.stream,
            logprobs=asked.logprobs,
            score_prompt=(asked.echo and asked.logprobs is not None) or asked.max_tokens == 0,
            events=events,
            prompt=place,
            rules=rules,
            open_ended=asked.max_tokens is None,
            gone=gone,
        )
        for place, ids in enumerate(prompts)
    ]
    if any(sum(c.memory_tokens for c in t.choices) > slot.model.memory_tokens for t in tickets):
        raise RequestError(
            f"n: {asked.n} choices of this length need more than the {slot.model.memory_tokens} tokens of memory here",
            param="n",
        )
    return tickets


def _chat_ids(asked: GenerationRequest, slot: "ModelSlot") -> list[int]:
    try:
        return slot.encoder.encode_prompt(asked.messages or ())
    except TemplateRefusedError as error:
        raise RequestError(f"the chat template refuses these messages: {error.message}", param="messages") from error


def _prompt_ids(prompt: str | tuple[int, ...], slot: "ModelSlot") -> list[int]:
    if isinstance(prompt, str):
        ids = slot.encoder.encode_text(prompt)
        if not ids:
            raise RequestError("prompt: no token in it", param="prompt")
        return ids
    if max(prompt) >= slot.model.vocabulary:
        raise RequestError(f"prompt: token ids end at {slot.model.vocabulary - 1}", param="prompt")
    return list(prompt)


def _check_bias(sampling: Sampling, slot: "ModelSlot") -> None:
    if any(token >= slot.model.vocabulary for token in sampling.logit_bias):
        raise RequestError(f"logit_bias: token ids end at {slot.model.vocabulary - 1}", param="logit_bias")


def _room(asked: GenerationRequest, slot: "ModelSlot", ids: Sequence[int], prompts: int) -> int:
    """How many tokens may be generated. Raises RequestError when the prompt fills the context."""
    room = slot.model.max_context_tokens - len(ids)
    if room < (0 if asked.max_tokens == 0 else 1):
        raise RequestError(
            f"the prompt has {len(ids)} tokens, the context holds {slot.model.max_context_tokens}",
            param="messages" if asked.messages is not None else "prompt",
            code="context_length_exceeded",
        )
    return room if asked.max_tokens is None else min(room, asked.max_tokens)


def _score_ticket(asked: ScoreRequest, slot: "ModelSlot", gone: Callable[[], bool]) -> Ticket:
    if asked.messages is not None:
        try:
            ids = slot.encoder.encode_row({"messages": asked.messages}).ids.tolist()
        except TemplateRefusedError as error:
            raise RequestError(
                f"the chat template refuses these messages: {error.message}", param="messages"
            ) from error
    else:
        ids = _prompt_ids(asked.text if asked.text is not None else (), slot)
    if len(ids) > slot.model.max_context_tokens:
        raise RequestError(
            f"{len(ids)} tokens, the context holds {slot.model.max_context_tokens}", code="context_length_exceeded"
        )
    plain = Sampling()
    return Ticket(
        slot.model, slot.encoder, ids, sampling=plain, max_tokens=0, logprobs=asked.top, score_prompt=True, gone=gone
    )


def counted(asked: ScoreRequest, slot: "ModelSlot") -> list[bool]:
    """Which tokens of a scored text count towards its loss: the trained ones of a chat, all of a text but the first."""
    if asked.messages is None:
        return []
    mask: list[bool] = slot.encoder.encode_row({"messages": asked.messages}).mask.tolist()
    return mask


__all__ = ["PING_EVERY_S", "Answer", "Answering", "CallerGoneError", "GenerationFailedError", "PromptScores", "counted"]
