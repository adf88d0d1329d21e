"""Where each token of a byte-level tokenizer begins, without asking for offsets (all arrows, through chat_templates).

`encode_batch_fast` gives no offsets and is a fifth faster. In a byte-level vocabulary every token stands for a fixed
number of bytes, so offsets are a running sum; a sum that misses the length of the text says that this text is special
(normalised, stripped), and it is encoded the slow way.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any  # the tokenizer's own JSON

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Span = tuple[int, int]


class ByteLengths:
    """Bytes of every token id."""

    def __init__(self, lengths: NDArray[np.int64], normalizes: bool) -> None:
        self._lengths = lengths
        self._normalizes = normalizes
        self._longest = max(int(lengths.max()), 1)

    def least_tokens(self, text: str) -> int:
        """A text has at least so many tokens; known without encoding it (composition may shrink it four times)."""
        shrinks = 4 if self._normalizes and not text.isascii() else 1
        return len(text) // (self._longest * shrinks)

    @classmethod
    def of(cls, tokenizer: Tokenizer, doc: Mapping[str, Any]) -> "ByteLengths | None":
        """Measure a vocabulary; None when the tokenizer is not plainly byte-level.

        Args:
            doc: its tokenizer.json.
        """
        normalizer = (doc.get("normalizer") or {}).get("type")
        if doc["model"].get("type") != "BPE" or normalizer not in (None, "NFC") or not _is_byte_level(doc):
            return None
        lengths = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True) + 1, dtype=np.int64)
        for token, index in doc["model"]["vocab"].items():
            lengths[index] = len(token)  # one character of the byte alphabet for each byte
        for added in doc.get("added_tokens") or ():
            lengths[added["id"]] = len(added["content"].encode())
        return cls(lengths, normalizer == "NFC")

    def masks(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], ids: NDArray[np.int32], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Mark the tokens that hold a character of a span, for many texts at once.

        Args:
            spans: (start, end) in characters, not empty, for each text.
            ids: all texts' tokens, end to end.
            counts: tokens of each text.

        Returns:
            The mask over `ids`; and for each text whether its tokens cover it byte by byte, without which its part of
            the mask says nothing.
        """
        ends = self._lengths[ids].cumsum()
        firsts = np.concatenate(([0], counts.cumsum()))
        begins = np.concatenate(([0], ends))[firsts]
        sizes = [len(text) if text.isascii() else self._size(text) for text in texts]
        covered = (np.diff(begins) == sizes) & (counts > 0)
        edges: list[int] = []
        for text, ours, begin, good in zip(texts, spans, begins.tolist(), covered.tolist(), strict=False):
            if good and text.isascii():
                edges += [begin + edge for start, end in ours for edge in (start, end - 1)]
            elif good:
                edges += [begin + len(text[:edge].encode()) for start, end in ours for edge in (start, end - 1)]
        mask = np.zeros(len(ids), dtype=np.bool_)
        tokens = np.searchsorted(ends, edges, side="right").tolist()
        for first, last in zip(tokens[::2], tokens[1::2], strict=True):
            mask[first : last + 1] = True
        return mask, covered

    def _size(self, text: str) -> int:
        """Bytes of a text; -1 where normalising changes them."""
        return -1 if self._normalizes and not unicodedata.is_normalized("NFC", text) else len(text.encode())


def _is_byte_level(doc: Mapping[str, Any]) -> bool:
    splitter = doc.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers") or [splitter]
    known = all(part.get("type") in ("ByteLevel", "Split", "Digits") for part in parts)
    kept = all(part.get("behavior", "Isolated") == "Isolated" for part in parts)
    byte_level = [part for part in parts if part.get("type") == "ByteLevel"]
    return known and kept and len(byte_level) == 1 and not byte_level[0].get("add_prefix_space")
