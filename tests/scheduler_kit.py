"""A model that answers with its prompt backwards, and what drives a scheduler over it by hand."""

import queue
from collections.abc import Sequence

import numpy as np

from inference.generation import TILE_TOKENS, Chunk, StepResult, TokenScore
from inference.metrics import ServerMetrics
from inference.sampling import Sampling
from inference.scheduler import Scheduler
from inference.ticket import Piece, Ticket

VOCABULARY = 256
END = 0


class FakeModel:
    """Answers with the prompt backwards, then the end token. Keeps the contract of Model and checks that callers do."""

    max_context_tokens = 1000
    memory_tokens = 1_000_000
    least_tokens = 1
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
