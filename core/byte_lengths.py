"""Where each token of a byte-level tokenizer begins, without asking for offsets (all arrows, through chat_templates).

`encode_batch_fast` gives no offsets and is a fifth faster. In a byte-level vocabulary every token stands for a fixed
number of bytes, so offsets are a running sum; a sum that misses the length of the text says that this text is special
(normalised, stripped), and it is encoded the slow way.
"""

import json
import unicodedata
from typing import Any  # the tokenizer's own JSON

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


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
    def of(cls, tokenizer: Tokenizer) -> "ByteLengths | None":
        """Measure a vocabulary; None when the tokenizer is not plainly byte-level."""
        doc: dict[str, Any] = json.loads(tokenizer.to_str())
        normalizer = (doc.get("normalizer") or {}).get("type")
        if doc["model"].get("type") != "BPE" or normalizer not in (None, "NFC") or not _is_byte_level(doc):
            return None
        lengths = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True) + 1, dtype=np.int64)
        for token, index in doc["model"]["vocab"].items():
            lengths[index] = len(token)  # one character of the byte alphabet for each byte
        for added in doc.get("added_tokens") or ():
            lengths[added["id"]] = len(added["content"].encode())
        return cls(lengths, normalizer == "NFC")

    def ends(self, text: str, ids: NDArray[np.int32]) -> NDArray[np.int64] | None:
        """The byte at which each token ends; None when the ids do not cover the text byte by byte."""
        if self._normalizes and not (text.isascii() or unicodedata.is_normalized("NFC", text)):
            return None
        ends: NDArray[np.int64] = self._lengths[ids].cumsum()
        size = len(text) if text.isascii() else len(text.encode())
        return ends if len(ends) and ends[-1] == size else None


def token_at(text: str, ends: NDArray[np.int64], char: int) -> int:
    """The token that holds the first byte of a character, as `Encoding.char_to_token` finds it."""
    byte = char if text.isascii() else len(text[:char].encode())
    return int(np.searchsorted(ends, byte, side="right"))


def _is_byte_level(doc: dict[str, Any]) -> bool:
    splitter = doc.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers") or [splitter]
    known = all(part.get("type") in ("ByteLevel", "Split", "Digits") for part in parts)
    kept = all(part.get("behavior", "Isolated") == "Isolated" for part in parts)
    byte_level = [part for part in parts if part.get("type") == "ByteLevel"]
    return known and kept and len(byte_level) == 1 and not byte_level[0].get("add_prefix_space")
