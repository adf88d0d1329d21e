"""How much of the waiting prompts one step may read beside the streams that run (inside the inference server; torch-
free).

Units    seconds and tokens
"""

from dataclasses import dataclass, field

from inference.generation import TILE_TOKENS

_SHARE = (
    1.0  # of a decode step's time that pieces of prompts may add to it: keeps gaps between tokens below three steps
)
_STALL_S = 0.25  # what running streams may be held up by once, when many requests wait whose prompts can be read whole
_MANY = 0.25  # of the streams that run
_NEWEST = 0.2  # weight of the latest step in the averages


@dataclass(frozen=True, slots=True)
class Budget:
    """Prompt tokens the next step may read: `pieces` when a prompt is cut, `whole` while prompts fit as they are."""

    pieces: int
    whole: int


@dataclass(slots=True)
class Pace:
    """How long a model's steps take, as moving averages."""

    token_s: float = 0.0  # of a prompt
    decode_s: dict[int, float] = field(default_factory=dict)  # by the bits of the number of streams

    def budget(self, most: int, decoding: int, waiting: int) -> Budget:
        """What the next step may read.

        Args:
            most: the limit when nobody decodes. decoding: choices that generate. waiting: choices whose prompt is to be
                read and is no longer than `most`.
        """
        if not decoding:
            return Budget(most, most)
        if not self.token_s or not self.decode_s:
            return Budget(TILE_TOKENS, TILE_TOKENS)
        pieces = self._tokens(_SHARE * self._decode_s(decoding), most)
        many = waiting > _MANY * decoding
        return Budget(pieces, max(pieces, self._tokens(_STALL_S, most)) if many else pieces)

    def _tokens(self, seconds: float, most: int) -> int:
        return max(TILE_TOKENS, min(most, int(seconds / self.token_s)))

    def _decode_s(self, decoding: int) -> float:
        if not self.decode_s:
            return 0.0
        return self.decode_s[min(self.decode_s, key=lambda bits: abs(bits - decoding.bit_length()))]

    def learn(self, seconds: float, decoding: int, read: int) -> None:
        """Take in a step that took `seconds` for `decoding` choices and `read` prompt tokens."""
        if decoding and not read:
            bits = decoding.bit_length()
            self.decode_s[bits] = _moved(self.decode_s.get(bits, 0.0), seconds)
        elif read:
            own_s = seconds - (self._decode_s(decoding) if decoding else 0.0)
            self.token_s = _moved(self.token_s, max(own_s, 1e-6) / read)


def _moved(average: float, latest: float) -> float:
    return (1 - _NEWEST) * average + _NEWEST * latest if average else latest
