"""How many tokens of each row would be trained: the label audit and the token statistics (arrow: intake, layer 2)."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any  # JSON values

import numpy as np

from core.chat_templates import ChatEncoder, Encoded
from core.errors import DropforgeError
from core.formats.rows import RowProblem
from core.jinja_sandbox import TemplateRefusedError
from core.validation.rows import TrainingRow

TOO_LONG_POLICIES = ("reject", "drop", "truncate")
_SUSPECT_SHARE = 0.01


@dataclass(slots=True)
class TokenStats:
    """Counts over all audited rows. Lengths are those that will be trained, after a cut."""

    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    trained: int = 0
    truncated_rows: int = 0
    chat_rows: int = 0
    fully_trained_chat_rows: int = 0

    def add(self, encoded: Encoded, *, is_chat: bool) -> None:
        trained = int(encoded.mask.sum())
        self.lengths.append(len(encoded.ids))
        self.trained += trained
        self.chat_rows += is_chat
        self.fully_trained_chat_rows += is_chat and trained == len(encoded.ids)

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


class LabelAudit:
    """Encodes rows and judges their labels.

    Args:
        max_length: longest row in tokens.
        too_long: what happens to longer ones: "reject", "drop" or "truncate".
    """

    def __init__(self, encoder: ChatEncoder, *, max_length: int, too_long: str) -> None:
        self._encoder = encoder
        self._max_length = max_length
        self._too_long = too_long
        self.stats = TokenStats()

    def encode(self, rows: Sequence[TrainingRow]) -> list[Encoded | RowProblem]:
        """Encode rows that will be trained; a RowProblem where one cannot be, with code "dropped" for a dropped one."""
        hopeless = {index: self._hopeless(row) for index, row in enumerate(rows)}
        encoded = iter(self._encode([row for index, row in enumerate(rows) if hopeless[index] is None]))
        return [hopeless[index] or self._judge(row, next(encoded)) for index, row in enumerate(rows)]

    def _hopeless(self, row: TrainingRow) -> RowProblem | None:
        """Refuse a row that is over the length whatever its tokens are: megabytes without a space take minutes."""
        least = 0 if self._too_long == "truncate" else self._encoder.least_tokens(row)
        return self._over_length(least) if least > self._max_length else None

    def _encode(self, rows: Sequence[TrainingRow]) -> Iterable[Encoded | RowProblem]:
        try:
            return self._encoder.encode_rows(rows)
        except TemplateRefusedError:
            return [self._encode_one(row) for row in rows]

    def _encode_one(self, row: TrainingRow) -> Encoded | RowProblem:
        try:
            return self._encoder.encode_row(row)
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
        if not encoded.mask.any():
            return RowProblem("nothing_to_train", "no token of this row would be trained", None, "$.messages")
        self.stats.add(encoded, is_chat="messages" in row)
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
