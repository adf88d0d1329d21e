"""What of a row is trained, for a person to look at; and how long each role speaks (arrow: intake, layer 2).

Format   {"line", "tokens", "trained", "pieces": [{"text", "trained"}]}; a piece beyond hyperparams.max_length has `cut`
Effects  none; what is shown of a row is bounded, whatever its size
"""

from array import array
from collections.abc import Iterable
from typing import Any  # verdicts are JSON

import numpy as np

from core.chat_templates import ChatEncoder, Encoded
from core.validation.rows import TrainingRow

_SHOWN_CHARS = 4_000  # of one row
_SHOWN_PIECES = 100
_COUNTED_CHARS = 200_000  # of a row: a megabyte without a space takes a second
_QUANTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}


def painted(encoder: ChatEncoder, line: int, row: TrainingRow, encoded: Encoded) -> dict[str, Any]:
    """Show one row.

    Args:
        encoded: the row as it will be trained, perhaps cut at max_length.
    """
    pieces = [{"text": text, "trained": trained} for text, trained in encoder.pieces(encoded)]
    whole = encoder.encode_row(row)
    beyond = whole.ids[len(encoded.ids) :]
    if len(beyond):
        pieces.append({"text": encoder.decode(beyond.tolist(), False), "trained": False, "cut": True})
    shown = pieces[:_SHOWN_PIECES]
    for piece in shown:
        piece |= _shortened(str(piece["text"]), _SHOWN_CHARS // len(shown))
    counts = {"tokens": len(encoded.ids), "trained": int(encoded.mask.sum())}
    return {"line": line, **counts, "pieces": shown}


def _shortened(text: str, most: int) -> dict[str, Any]:
    if len(text) <= most:
        return {}
    head, tail = text[: most * 3 // 4], text[-(most // 4) :]
    return {"text": f"{head} … {tail}", "left_out_chars": len(text) - len(head) - len(tail)}


class RoleTokens:
    """Tokens of each turn, by who speaks. The template's own tokens are not counted."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder
        self._rows = 0
        self._lengths: dict[str, array[int]] = {}

    def add(self, rows: Iterable[TrainingRow]) -> None:
        """Count some rows."""
        for row in rows:
            turns = row.get("messages") or [{"role": "text", "content": row["text"]}]
            texts = [turn["content"] for turn in turns]
            if sum(map(len, texts)) > _COUNTED_CHARS:
                continue
            self._rows += 1
            counts = self._encoder.count_tokens(texts)
            for turn, count in zip(turns, counts, strict=True):
                self._lengths.setdefault(turn["role"], array("i")).append(count)

    def as_dict(self) -> dict[str, Any]:
        """{"rows": rows counted, role: {"turns", "total", "p50", "p95", "p99", "max"}}."""
        found: dict[str, Any] = {"rows": self._rows}
        for role, kept in sorted(self._lengths.items()):
            lengths = np.frombuffer(kept, dtype=np.int32)
            quantiles = np.percentile(lengths, list(_QUANTILES.values()), method="nearest")
            found[role] = {"turns": len(lengths), "total": int(lengths.sum(dtype=np.int64))}
            found[role] |= {name: int(value) for name, value in zip(_QUANTILES, quantiles, strict=True)}
        return found
