"""One request on its way through the scheduler: its choices, and the pieces of answer that come back (torch-free).

The handler's thread makes a ticket and reads `events`; the generation thread alone touches the choices. `cancel` may
come from any thread.
"""

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from inference.assembler import TextAssembler
from inference.generation import Model, TextCodec, TokenScore
from inference.sampling import Rule, Sampler, Sampling


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one choice's answer.

    Attributes:
        choice: counts all choices of the request, those of its first prompt first.
        tokens: ids that stand behind this text, each with its score when log-probabilities were asked for.
        finish_reason: "stop" or "length" on the last piece of a choice, else None.
        completion_tokens: tokens generated so far for this choice, the end token included.
    """

    choice: int
    text: str
    tokens: tuple[tuple[int, TokenScore | None], ...]
    finish_reason: str | None
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class PromptScores:
    """One entry per prompt token, None for the first. `prompt` counts the prompts of a request."""

    prompt: int
    scores: tuple[TokenScore | None, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """The request cannot be finished. `message` is fit for the caller; `param`: the field of theirs that is why."""

    message: str
    param: str | None = None


Event = Piece | PromptScores | Failure


@dataclass(slots=True)
class Choice:
    """One of the `n` answers, in the hands of the generation thread."""

    ticket: "Ticket"
    index: int
    sampler: Sampler
    assembler: TextAssembler
    rule: Rule | None = None
    context: int | None = None
    read: int = 0  # prompt tokens the model has seen
    cut: bool = False  # a piece of its prompt was read and some is left
    last_token: int = -1
    produced: int = 0
    finished: bool = False
    unsent: list[tuple[int, TokenScore | None]] = field(default_factory=list)
    unsent_text: str = ""
    show_at_s: float = 0.0  # when the next piece of a stream is due, on the monotonic clock

    @property
    def memory_tokens(self) -> int:
        """Tokens to keep room for: all it may become, or what it is when the caller named no limit."""
        ahead = self.produced + 1 if self.ticket.open_ended else self.ticket.max_tokens
        return len(self.ticket.prompt_ids) + ahead

    @property
    def shows(self) -> bool:
        """Whether a stream has something to show that was not sent."""
        scored = self.ticket.logprobs is not None and bool(self.unsent)
        return self.ticket.stream and (bool(self.unsent_text) or scored)

    @property
    def left(self) -> int:
        """Prompt tokens the model has not seen yet."""
        return len(self.ticket.prompt_ids) - self.read

    @property
    def reading(self) -> bool:
        return self.left > 0


class Ticket:
    """A request for generation (max_tokens >= 1), for scoring (`score_prompt`), or for both."""

    def __init__(
        self,
        model: Model,
        codec: TextCodec,
        prompt_ids: Sequence[int],
        *,
        sampling: Sampling,
        max_tokens: int,
        n: int = 1,
        stop: Sequence[str] = (),
        stream: bool = False,
        logprobs: int | None = None,
        score_prompt: bool = False,
        events: "queue.SimpleQueue[Event] | None" = None,
        prompt: int = 0,
        rules: Sequence[Rule] = (),
        open_ended: bool = False,
        gone: "Callable[[], bool] | None" = None,
    ) -> None:
        """Make a ticket.

        Args:
            max_tokens: 0 only with `score_prompt`.
            logprobs: alternatives a token; None for no log-probabilities.
            events: shared by the tickets of one request with several prompts; `prompt` counts them.
            rules: none, or one for each of the `n` choices.
            open_ended: the caller named no limit: memory is not kept free for `max_tokens`, and may run out.
            gone: tells whether the caller has left; asked before each step, so it must be cheap and never raise.
        """
        self.model = model
        self.codec = codec
        self.prompt_ids = tuple(prompt_ids)
        self.max_tokens = max_tokens
        self.stream = stream
        self.logprobs = logprobs
        self.score_prompt = score_prompt
        self.prompt_scores: list[TokenScore | None] = [None]
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue() if events is None else events
        self.prompt = prompt
        self.open_ended = open_ended
        self._gone = gone
        self._cancelled = False
        self.created_s = time.monotonic()
        self.first_token_s: float | None = None
        self.cached_tokens = 0
        each: Sequence[Rule | None] = rules or [None] * n
        self.n = n
        self.choices = [
            Choice(self, i, Sampler(sampling, i, rule), TextAssembler(codec, stop), rule) for i, rule in enumerate(each)
        ]

    @property
    def cancelled(self) -> bool:
        """Nobody wants the answer any more: said by its handler, or seen on the connection."""
        return self._cancelled or (self._gone is not None and self._gone())

    @cancelled.setter
    def cancelled(self, is_so: bool) -> None:
        self._cancelled = is_so

    @property
    def done(self) -> bool:
        return all(choice.finished for choice in self.choices)

    def release(self) -> None:
        """Let go of the choices. Each holds its ticket and so the model: as a cycle they would keep a model that was
        swapped out in memory until Python's full collection, which with torch loaded comes about once in hours.
        """
        self.choices = []
