"""From tokens to text that may be shown: whole characters only, and never a piece of a stop string (inside the
inference server).

A byte-level token can end in the middle of a character; such text waits until the character is whole. Text that could
still grow
into a stop string waits too. What was handed out is never taken back.
"""

from collections.abc import Sequence

from inference.generation import TextCodec

_INCOMPLETE = "\ufffd"  # what decoders write for bytes that are no whole character yet
_LONGEST_CHARACTER_TOKENS = 4  # a UTF-8 character has at most four bytes; after that a replacement character is meant


class TextAssembler:
    """Collects the tokens of one choice."""

    def __init__(self, codec: TextCodec, stop: Sequence[str] = ()) -> None:
        self._codec = codec
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._window = 0  # first token of the decoding window: keeps spacing rules of the decoder right
        self._read = 0  # tokens before this one are in the text already
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token. Returns the text that may be shown now; sets `stopped` when a stop string was met."""
        self._ids.append(token)
        known = self._codec.decode(self._ids[self._window : self._read])
        whole = self._codec.decode(self._ids[self._window :])
        waiting = len(self._ids) - self._read
        if whole.endswith(_INCOMPLETE) and waiting < _LONGEST_CHARACTER_TOKENS:
            return ""
        self._window, self._read = self._read, len(self._ids)
        return self._release(whole[len(known) :])

    def finish(self) -> str:
        """No more tokens: hand out what was held back (an unfinished character as U+FFFD)."""
        if self.stopped:
            return ""
        shown = ""
        if self._read < len(self._ids):
            known = self._codec.decode(self._ids[self._window : self._read])
            shown = self._release(self._codec.decode(self._ids[self._window :])[len(known) :])
        rest, self._held = self._held, ""  # nothing is held once a stop string was met
        self.text += rest
        return shown + rest

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.stopped, self._held = True, ""
            self.text += text[:cut]
            return text[:cut]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop` (shorter than `stop`)."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
