"""The shapes of answers: what clients of the imitated API parse (inside the inference server; torch-free). Log-
probabilities in nats.
"""

import json
import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any  # Any: answers are JSON documents

from inference.generation import TextCodec, TokenScore
from inference.protocol import GenerationRequest
from inference.ticket import Piece, PromptScores
from inference.token_names import Places, TokenNames

if TYPE_CHECKING:
    from inference.answering import Answer

Token = tuple[int, TokenScore | None]
Run = tuple[Sequence[Token], Places]  # tokens that follow each other, and what tells where they begin
_written = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_LOWEST_NATS = -9999.0  # what the imitated API reports for an impossible token; JSON has no infinity


class Shape:
    """Builds the documents of one answer; ids and time stay the same over all its chunks."""

    def __init__(self, asked: GenerationRequest, answer: "Answer") -> None:
        self.chat = asked.messages is not None
        self._asked = asked
        self._answer = answer
        self._codec: TextCodec = answer.slot.encoder
        self._names: TokenNames = answer.slot.names
        self._head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": answer.slot.id,
            "system_fingerprint": answer.slot.id,
        }
        self._places = [Places(self._names) for _ in range(asked.n * len(answer.tickets))]  # of each streamed choice

    def whole(self, pieces: Mapping[int, Piece], scores: Mapping[int, PromptScores]) -> dict[str, Any]:
        """The document of an answer that is not streamed."""
        choices = [self._choice(pieces[place], scores) for place in sorted(pieces)]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self._usage(pieces.values())}

    def _choice(self, piece: Piece, scores: Mapping[int, PromptScores]) -> dict[str, Any]:
        if self.chat:
            message = {"role": "assistant", "content": piece.text, "refusal": None}
            end = {"logprobs": self._chat_logprobs(piece.tokens), "finish_reason": piece.finish_reason}
            return {"index": piece.choice, "message": message, **end}
        runs: list[Run] = []
        text, begin = piece.text, 0
        if self._asked.echo:
            ticket = self._answer.tickets[piece.choice // self._asked.n]
            prompt, known = self._prompt_text(ticket.prompt), scores.get(ticket.prompt)
            none: Sequence[TokenScore | None] = [None] * len(ticket.prompt_ids)
            echoed = zip(ticket.prompt_ids, none if known is None else known.scores, strict=True)
            runs.append((tuple(echoed), Places(self._names)))
            text, begin = prompt + text, len(prompt)
        if self._asked.max_tokens != 0:
            runs.append((piece.tokens, Places(self._names, begin)))
        logprobs = self._text_logprobs(runs)
        return {"index": piece.choice, "text": text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _prompt_text(self, prompt: int) -> str:
        asked = self._asked.prompts[prompt]
        return asked if isinstance(asked, str) else self._codec.decode(asked)

    def opening(self) -> list[dict[str, Any]]:
        """The first chunk of each choice of a streamed chat: the role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return (
            [self._chunk(place, {"delta": delta}, None, None) for place in range(len(self._places))]
            if self.chat
            else []
        )

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks of one piece: its text, then its end."""
        made = []
        if piece.text or (piece.tokens and self._asked.logprobs is not None):
            if self.chat:
                body: dict[str, Any] = {"delta": {"content": piece.text}}
                logprobs = self._chat_logprobs(piece.tokens)
            else:
                body = {"text": piece.text}
                logprobs = self._text_logprobs([(piece.tokens, self._places[piece.choice])])
            made.append(self._chunk(piece.choice, body, logprobs, None))
        if piece.finish_reason is not None:
            end: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
            made.append(self._chunk(piece.choice, end, None, piece.finish_reason))
        return made

    def _chunk(self, place: int, body: dict[str, Any], logprobs: object, reason: str | None) -> dict[str, Any]:
        choice = {"index": place, **body, "logprobs": logprobs, "finish_reason": reason}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        doc = {**self._head, "object": kind, "choices": [choice]}
        return {**doc, "usage": None} if self._asked.include_usage else doc

    def usage_chunk(self, ended: Mapping[int, Piece]) -> dict[str, Any]:
        """The last chunk when the caller asked for token counts."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": [], "usage": self._usage(ended.values())}

    def _usage(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        completion = sum(piece.completion_tokens for piece in pieces)
        prompt = self._answer.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._answer.cached_tokens},
        }

    def _chat_logprobs(self, tokens: Iterable[Token]) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        content = [
            {**self._named(token, score.logprob), "top_logprobs": [self._named(i, nats) for i, nats in score.top]}
            for token, score in tokens
            if score is not None
        ]
        return {"content": content, "refusal": None}

    def _named(self, token: int, nats: float) -> dict[str, Any]:
        return {
            "token": self._names.text(token),
            "logprob": _finite(nats),
            "bytes": list(self._names.stands_for(token)),
        }

    def _text_logprobs(self, runs: Sequence[Run]) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        tokens = [token for run, _ in runs for token in run]
        return {
            "tokens": [self._names.name(token) for token, _ in tokens],
            "token_logprobs": [None if score is None else _finite(score.logprob) for _, score in tokens],
            "top_logprobs": [self._top(token, score) for token, score in tokens] if self._asked.logprobs else None,
            "text_offset": [places.next(token) for run, places in runs for token, _ in run],
        }

    def _top(self, token: int, score: TokenScore | None) -> dict[str, float] | None:
        """The likeliest tokens by name, and always the token itself; of two with one name the likelier."""
        if score is None:
            return None
        top: dict[str, float] = {}
        for other, nats in (*score.top, (token, score.logprob)):
            top.setdefault(self._names.name(other), _finite(nats))
        return top


def _finite(nats: float) -> float:
    return nats if math.isfinite(nats) else _LOWEST_NATS


def event(doc: object) -> bytes:
    """One server-sent event."""
    return b"data: " + _written(doc).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def score_document(answer: "Answer", scores: PromptScores, counted: Sequence[bool], messages: bool) -> dict[str, Any]:
    """The document of /v1/score: mean loss over the counted tokens, perplexity, and each token's surprisal."""
    ids, names = answer.tickets[0].prompt_ids, answer.slot.names
    used = counted if messages else [True] * len(ids)
    rows = []
    for token, score, counts in zip(ids, scores.scores, used, strict=True):
        row: dict[str, Any] = {"id": token, "token": names.text(token), "counted": counts and score is not None}
        row["surprisal"] = None if score is None else _finite(-score.logprob)
        row["top"] = [
            {"id": i, "token": names.text(i), "logprob": _finite(nats)} for i, nats in (score.top if score else ())
        ]
        rows.append(row)
    nats = [float(row["surprisal"]) for row in rows if row["counted"]]
    loss = sum(nats) / len(nats) if nats else None
    perplexity = None if loss is None or loss > 700 else math.exp(loss)
    return {
        "object": "score",
        "model": answer.slot.id,
        "system_fingerprint": answer.slot.id,
        "loss": loss,
        "perplexity": perplexity,
        "tokens_counted": len(nats),
        "tokens": rows,
    }
