"""What tokens are called in answers, which bytes they stand for, and where they begin (inside the inference server;
torch-free).

A token may hold a part of a character only. Its text is then U+FFFD, as that of a hundred others, so that it is known
by its bytes, spelled as the imitated API spells them.
"""

import codecs
import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any  # Any: the tokenizer's own JSON

if TYPE_CHECKING:
    from core.chat_templates import ChatEncoder

_UNKNOWN = "\ufffd"
_utf8 = codecs.getincrementaldecoder("utf-8")
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TokenNames:
    """The names of one vocabulary, read when the first part of a character is met. May be shared by threads."""

    def __init__(self, encoder: "ChatEncoder") -> None:
        self._encoder = encoder

    def text(self, token: int) -> str:
        """One token as it follows other text, special tokens spelled out; U+FFFD for parts of characters."""
        return self._after_letters(token, skip_special_tokens=False)

    def stands_for(self, token: int) -> bytes:
        """The bytes of a token, special tokens spelled out."""
        text = self.text(token)
        return self._parts.get(token, text.encode()) if _UNKNOWN in text else text.encode()

    def name(self, token: int) -> str:
        r"""The token's text; `bytes:\xf0\x9f` for a part of a character."""
        text = self.text(token)
        if _UNKNOWN not in text or token not in self._parts:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._parts[token])

    def written(self, token: int, *, first: bool) -> bytes:
        """What an answer's text has of it: nothing of special tokens. `first`: no text stands before it."""
        text = self._encoder.decode([token]) if first else self._after_letters(token, skip_special_tokens=True)
        return self._parts.get(token, text.encode()) if _UNKNOWN in text else text.encode()

    def _after_letters(self, token: int, *, skip_special_tokens: bool) -> str:
        before, letters = self._neighbour
        return self._encoder.decode([*before, token], skip_special_tokens).removeprefix(letters)

    @cached_property
    def _neighbour(self) -> tuple[list[int], str]:
        """A token with letters, and these: decoders take the space away from a token that stands alone."""
        for token in range(self._encoder.vocabulary_size):
            letters = self._encoder.decode([token], skip_special_tokens=False)
            if letters.isascii() and letters.isalpha():
                return [token], letters
        return [], ""

    @cached_property
    def _parts(self) -> dict[int, bytes]:
        """The bytes of tokens that are no whole characters."""
        doc = json.loads(self._encoder.tokenizer_json())
        vocabulary = doc["model"]["vocab"]
        pieces = vocabulary.items() if isinstance(vocabulary, dict) else ((v[0], i) for i, v in enumerate(vocabulary))
        alphabet = _byte_alphabet() if _has_byte_level(doc.get("decoder")) else {}
        parts: dict[int, bytes] = {}
        for piece, token in pieces:
            fallback = _BYTE_FALLBACK.fullmatch(piece)
            if fallback:
                parts[token] = bytes([int(fallback[1], 16)])
            elif alphabet and all(character in alphabet for character in piece):
                parts[token] = bytes(alphabet[character] for character in piece)
        return {token: part for token, part in parts.items() if not _is_text(part)}


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_byte_level(decoder: Any) -> bool:
    if not decoder:
        return False
    return decoder["type"] == "ByteLevel" or any(map(_has_byte_level, decoder.get("decoders", ())))


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies: printable Latin-1 is itself, the others follow from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Places:
    """Where the tokens of a text begin in it, in characters; one inside of a character is where that character is."""

    def __init__(self, names: TokenNames, begin: int = 0) -> None:
        """Args: begin: characters that stand before the first token."""
        self._names = names
        self._ended = begin  # characters that are whole, or can never be
        self._read = _utf8("replace")
        self._empty = True

    def next(self, token: int) -> int:
        """The place of the token that follows those asked for before."""
        written = self._names.written(token, first=self._empty)
        self._empty = self._empty and not written
        begun, _ = self._read.getstate()
        place = self._ended + (bool(begun and written) and not _goes_on(begun, written))
        self._ended += len(self._read.decode(written))
        return place


def _goes_on(begun: bytes, written: bytes) -> bool:
    """Whether this is the rest of a character that was begun, or a part of its rest."""
    try:
        _utf8().decode(begun + written[:1])
    except UnicodeDecodeError:
        return False
    return True
