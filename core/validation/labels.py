"""How many tokens of each row would be trained: the label audit and the token statistics (arrow: intake, layer 2)."""

from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any  # JSON values

import numpy as np

from core.chat_templates import ChatEncoder, Encoded, Prepared
from core.errors import DropforgeError
from core.formats.rows import RowProblem
from core.template_text import TemplateRefusedError
from core.validation.rows import TrainingRow, row_chars

TOO_LONG_POLICIES = ("reject", "drop", "truncate")
_SUSPECT_SHARE = 0.01
_ENCODED_ROWS, _ENCODED_CHARS = 512, 1 << 20  # at a time
Todo = tuple[int, int, bytes, TrainingRow]  # row number, line, SHA-256, row


@dataclass(slots=True)
class TokenStats:
    """Counts over all audited rows. Lengths are those that will be trained, after a cut."""

    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    trained: int = 0
    truncated_rows: int = 0
    chat_rows: int = 0
    fully_trained_chat_rows: int = 0

    def add(self, tokens: int, trained: int, *, is_chat: bool) -> None:
        """Count a row of so many tokens."""
        self.lengths.append(tokens)
        self.trained += trained
        self.chat_rows += is_chat
        self.fully_trained_chat_rows += is_chat and trained == tokens

    def as_dict(self) -> dict[str, Any]:
        """The contract's `tokens`."""
        lengths = np.frombuffer(self.lengths, dtype=np.int32) if self.lengths else np.zeros(1, np.int32)
        p50, p95, p99 = (int(value) for value in np.percentile(lengths, (50, 95, 99), method="nearest"))
        return {
            "total": int(lengths.sum(dtype=np.int64)),
            "trained": self.trained,
            "truncated_rows": self.truncated_rows,
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "max": int(lengths.max()),
            "rows": len(self.lengths),
        }

    def suspicion(self) -> str | None:
        """A mask that is allowed and yet looks wrong, in words."""
        total = self.as_dict()["total"]
        if self.chat_rows and self.trained < _SUSPECT_SHARE * total:
            return f"only {self.trained} of {total} tokens would be trained"
        if self.chat_rows and self.fully_trained_chat_rows == self.chat_rows:
            return "every token of the chat rows would be trained, the questions too"
        return None


@dataclass(frozen=True, slots=True)
class Started:
    """Rows being encoded. `work`: the tokenizer's answer, now or later; without `prepared`, rows that are done."""

    rows: Sequence[TrainingRow]
    hopeless: Sequence[RowProblem | None]
    prepared: Prepared | None
    work: Any  # Encodings, a Future of them, or done rows


class LabelAudit:
    """Encodes rows and judges their labels.

    Args:
        max_length: longest row in tokens.
        too_long: what happens to longer ones: "reject", "drop" or "truncate".
    """

    def __init__(self, encoder: ChatEncoder, max_length: int, too_long: str) -> None:
        self.encoder = encoder
        self._max_length = max_length
        self._too_long = too_long
        self.stats = TokenStats()

    def encode(self, rows: Sequence[TrainingRow]) -> list[Encoded | RowProblem]:
        """Encode rows that will be trained; a RowProblem where one cannot be, with code "dropped" for a dropped one."""
        return self.finish(self.start(rows, None))

    def start(self, rows: Sequence[TrainingRow], pool: Executor | None) -> Started:
        """Begin to encode rows: with a pool, the tokenizer reads them in another thread until `finish`."""
        hopeless = [self._hopeless(row) for row in rows]
        sound = [row for row, problem in zip(rows, hopeless, strict=True) if problem is None]
        try:
            prepared = self.encoder.prepare(sound)
        except TemplateRefusedError:
            return Started(rows, hopeless, None, [self._encode_one(row) for row in sound])
        work = self.encoder.tokenize(prepared) if pool is None else pool.submit(self.encoder.tokenize, prepared)
        return Started(rows, hopeless, prepared, work)

    def quoting(self, started: Started) -> list[bool]:
        """Of each row, whether it spells a control token."""
        if started.prepared is None or any(started.hopeless):
            return [self.encoder.quotes_special(row) for row in started.rows]
        pairs = zip(started.rows, started.prepared.rendered, strict=True)
        return [self.encoder.quotes_special(row) if text is None else bool(text.quoted) for row, text in pairs]

    def finish(self, started: Started) -> list[Encoded | RowProblem]:
        """The rows given to `start`, as `encode` gives them back."""
        work = started.work.result() if isinstance(started.work, Future) else started.work
        encoded = iter(work if started.prepared is None else self._label(started.prepared, work))
        pairs = zip(started.rows, started.hopeless, strict=True)
        return [problem or self._judge(row, next(encoded)) for row, problem in pairs]

    def _label(self, prepared: Prepared, encodings: Any) -> Sequence[Encoded | RowProblem]:  # of tokenizers
        try:
            return self.encoder.label(prepared, encodings)
        except TemplateRefusedError:
            return [self._encode_one(dict(row)) for row in prepared.rows]

    def _hopeless(self, row: TrainingRow) -> RowProblem | None:
        """Refuse a row that is over the length whatever its tokens are: megabytes without a space take minutes."""
        if row_chars(row) <= self._max_length:
            return None  # the least number of tokens is never more than that of characters
        least = 0 if self._too_long == "truncate" else self.encoder.least_tokens(row)
        return self._over_length(least) if least > self._max_length else None

    def _encode_one(self, row: TrainingRow) -> Encoded | RowProblem:
        try:
            return self.encoder.encode_row(row)
        except DropforgeError as error:
            return RowProblem("template_refused", error.message, None, "$.messages", "write it as the template asks")

    def _judge(self, row: TrainingRow, encoded: Encoded | RowProblem) -> Encoded | RowProblem:
        if isinstance(encoded, RowProblem):
            return encoded
        if len(encoded.ids) > self._max_length:
            if self._too_long != "truncate":
                return self._over_length(len(encoded.ids))
            encoded = Encoded(encoded.ids[: self._max_length], encoded.mask[: self._max_length])
            self.stats.truncated_rows += 1
        trained = encoded.mask.tobytes().count(1)  # numpy's own count has a cost for each call
        if not trained:
            message, fix = "no token of this row would be trained", "shorten what stands before its first answer"
            return RowProblem("nothing_to_train", message, None, "$.messages", fix)
        self.stats.add(len(encoded.ids), trained, is_chat="messages" in row)
        return encoded

    def _over_length(self, tokens: int) -> RowProblem:
        code = "too_long" if self._too_long == "reject" else "dropped"
        return RowProblem(
            code,
            f"the row has {tokens} tokens or more, over hyperparams.max_length = {self._max_length}",
            None,
            None,
            "shorten it, raise hyperparams.max_length, or set validation.too_long to drop or truncate",
        )


def in_pieces(rows: Iterator[Todo]) -> Iterator[list[Todo]]:
    """Some hundred rows at a time, fewer where they are long: what is encoded at once stands in memory at once."""
    todo, chars = list[Todo](), 0
    for each in rows:
        todo.append(each)
        chars += row_chars(each[3])
        if len(todo) >= _ENCODED_ROWS or chars >= _ENCODED_CHARS:
            yield todo
            todo, chars = [], 0
    if todo:
        yield todo
