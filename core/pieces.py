"""Token ids by a table of pieces already seen: three times faster than the tokenizer, same ids (all arrows).

A byte-level BPE first cuts text into pieces by a regular expression and then encodes each by itself, so that equal
pieces have equal ids, and most pieces of a text have been seen before. Only texts are taken whose characters every
engine of regular expressions puts into the same class, and only tokenizers whose cutting is known here; the rest is
left to the tokenizer itself. A test holds both to each other, character by character.

Units    ids are int32, as bytes of this machine
Effects  none to be seen; may be shared by threads
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any  # the tokenizer's own JSON

from tokenizers import Tokenizer, pre_tokenizers

_KNOWN_PIECES, _KEPT_CHARS = 1 << 16, 32  # at most 26 MB, with the ids
_MOST_NEW_AT_FIRST, _MOST_NEW = 1 / 3, 1 / 8  # shares of the pieces; a new one costs as much as eight known ones
_LONGEST_TEXT = 1 << 16  # characters; the pieces of a longer one would be a heap of their own
ID_BYTES = 4
_S, _N = r"\t-\r ", "0-9"
_L = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0180-\u02af\u0391-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
_OTHER = "\u00a1-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u2010-\u2027\u2030-\u205e\u20a0-\u20bf"
_SAFE = re.compile(f"[\x00-\x7f{_L}{_OTHER}]*")
_SPACES = f"[{_S}]+(?![^{_S}])|[{_S}]+"
_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{_L}]+| ?[{_N}]+| ?[^{_S}{_L}{_N}]+|{_SPACES}"
# digits cut off beforehand: no space stands before one, and each ends what it follows
_DIGITS_FIRST = rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{_L}]+|[{_N}]%s| ?[^{_S}{_L}{_N}]+|[{_S}]+(?![^{_S}{_N}])|[{_S}]+"
# of Qwen 2 and 3, and of Llama 3: as their tokenizer.json has it, and the same in Python
_TIKTOKEN_THEIRS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TIKTOKEN = (
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{_L}{_N}]?[{_L}]+|[{_N}]%s| ?[^{_S}{_L}{_N}]+[\r\n]*|[{_S}]*[\r\n]+|"
    + _SPACES
)
_SPLITS = {_TIKTOKEN_THEIRS % digits: _TIKTOKEN % digits for digits in ("", "{1,3}")}


class Pieces:
    """Encodes texts of one tokenizer."""

    def __init__(self, model: Any, control: Mapping[str, int], pattern: str) -> None:  # of tokenizers
        self._whole = Tokenizer(model)  # encodes a piece without cutting it
        self._whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        longest_first = map(re.escape, sorted(control, key=len, reverse=True))
        self._control = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self._find = re.compile(pattern).findall
        self._always = {text: as_bytes([index]) for text, index in control.items()}
        self._known: dict[str, bytes] = dict(self._always)

    @classmethod
    def of(cls, tokenizer: Tokenizer, doc: Mapping[str, Any]) -> "Pieces | None":
        """Make the table of a tokenizer; None when it does more than is known here.

        Args:
            doc: its tokenizer.json.
        """
        added = doc.get("added_tokens") or ()
        simple = not any(token.get(key) for token in added for key in ("single_word", "lstrip", "rstrip", "normalized"))
        pattern = _pattern_of(doc.get("pre_tokenizer") or {})
        normalizer = (doc.get("normalizer") or {}).get("type")  # safe texts are NFC already
        model = doc["model"]
        if pattern is None or not simple or normalizer not in (None, "NFC") or model["type"] != "BPE":
            return None
        if model.get("dropout") or not tokenizer.get_vocab_size():
            return None
        return cls(tokenizer.model, {token["content"]: token["id"] for token in added}, pattern)

    def encode(self, texts: Sequence[str]) -> list[bytes | None]:
        """The ids of each text; None where it is left to the tokenizer."""
        if len(self._known) > _KNOWN_PIECES:
            self._known = dict(self._always)  # a new one: other threads may be reading the old
        known = self._known
        rows: list[bytes | None] = []
        unknown: dict[int, list[str]] = {}  # row -> its pieces, where one is new
        new: set[str] = set()
        pieces = 0
        for row, text in enumerate(texts):
            rows.append(None)
            if len(text) > _LONGEST_TEXT or not (text.isascii() or _SAFE.fullmatch(text)):
                continue
            words = self._cut(text)
            found = [*map(known.get, words)]
            pieces += len(words)
            if None in found:
                unknown[row] = words
                new.update(words)
            else:
                rows[row] = b"".join(found)  # type: ignore[arg-type]  # none is None
        # text of which too much is new, random letters for one, is faster by the tokenizer
        new = {word for word in new if word not in known}
        most = _MOST_NEW if len(known) > _KNOWN_PIECES // 4 else _MOST_NEW_AT_FIRST
        if len(new) <= most * pieces:
            ids = self._encode_new(new)
            for row, words in unknown.items():
                rows[row] = b"".join([ids[word] if word in ids else known[word] for word in words])
            known.update({word: its for word, its in ids.items() if len(word) <= _KEPT_CHARS})
        return rows

    def _cut(self, text: str) -> list[str]:
        words: list[str] = []
        find = self._find
        for place, part in enumerate(self._control.split(text)):
            if place % 2:  # a control token
                words.append(part)
            else:
                words += find(part)
        return words

    def _encode_new(self, words: set[str]) -> dict[str, bytes]:
        listed = list(words)
        encodings = self._whole.encode_batch_fast(listed, add_special_tokens=False)
        return {word: as_bytes(encoding.ids) for word, encoding in zip(listed, encodings, strict=True)}


def as_bytes(ids: Sequence[int]) -> bytes:
    """Ids as this module keeps them."""
    return array("i", ids).tobytes()


def _pattern_of(splitter: Mapping[str, Any]) -> str | None:
    """How a tokenizer cuts safe texts; None when that is not known here."""
    *before, last = splitter.get("pretokenizers") or [splitter]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True) or len(before) > 1:
        return None
    first = before[0] if before else {}
    if last.get("use_regex", True):
        if first.get("type") == "Digits":
            return _DIGITS_FIRST % ("" if first.get("individual_digits") else "+")
        return None if first else _GPT2
    if first.get("type") != "Split" or first.get("behavior") != "Isolated" or first.get("invert"):
        return None
    return _SPLITS.get((first.get("pattern") or {}).get("Regex", ""))
