"""What the scheduler and a model say to each other (inside the inference server; torch-free).

One step of a model: every decoding context gets exactly one token, any number of prompts get a chunk. The fake of the
tests
and the real model of `model_slot.py` both keep this contract, so the scheduler is tested without weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol  # Any: a row of training data is a JSON object

import numpy as np
from numpy.typing import NDArray

LogitsRow = NDArray[np.float32]
TILE_TOKENS = 32  # prompts are read in multiples of this (their end apart), so that no bit depends on how they are cut


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a prompt to read.

    Attributes:
        context: handle from `Model.open`.
        ids: tokens that follow what the context has read already; a multiple of TILE_TOKENS but at the prompt's end.
        last: the context decodes from the next step on; its next-token logits are wanted.
        targets: for scoring: the token that really follows each of `ids` (None where nothing does).
        top: for scoring: how many alternatives to report a position.
    """

    context: int
    ids: Sequence[int]
    last: bool
    targets: Sequence[int | None] | None = None
    top: int = 0


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The log-probability (nats) of a token in its place, and the most likely alternatives as (id, nats)."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class StepResult:
    """logits[context]: next-token logits, shape (vocabulary,). scores[context]: one entry per target of its chunk."""

    logits: dict[int, LogitsRow] = field(default_factory=dict)
    scores: dict[int, list[TokenScore | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Canary:
    """A row the judge scored with this very checkpoint: its training row and the mean loss per trained token.

    `tokens`: how many trained tokens the judge counted; a row it cut short is no canary.
    """

    row: Mapping[str, Any]
    loss: float
    tokens: int | None = None


class Model(Protocol):
    """A model that continuous batching can drive. Not thread-safe: the generation thread alone calls it."""

    @property
    def max_context_tokens(self) -> int: ...

    @property
    def memory_tokens(self) -> int:
        """Tokens of all contexts together that the memory has room for."""
        ...

    @property
    def least_tokens(self) -> int:
        """Tokens of that memory that even the shortest context takes."""
        ...

    @property
    def vocabulary(self) -> int: ...

    def open(self, ids: Sequence[int]) -> tuple[int, int]:
        """Begin a context for this prompt. Returns (handle, tokens already read from a shared prefix)."""
        ...

    def step(self, decode: dict[int, int], chunks: Sequence[Chunk]) -> StepResult:
        """Run one packed step. `decode` maps every decoding context to the token it just produced."""
        ...

    def close(self, context: int) -> None:
        """Forget a context in any state."""
        ...


class TextCodec(Protocol):
    """Tokens to text and back: the part of `core.chat_templates.ChatEncoder` that generation needs."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
