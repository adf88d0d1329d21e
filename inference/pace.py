"""How much of the waiting prompts one step may read beside the streams that run (inside the inference server; torch-
free).

Units    seconds and tokens
"""

from dataclasses import dataclass

from inference.generation import TILE_TOKENS

_SHARE = 1.0  # of a decode step's time that prompts may add to it: keeps gaps between tokens below three steps
_STALL_S = 0.25  # what few streams may be held up by once, when more requests than they wait for their first token
_NEWEST = 0.2  # weight of the latest step in the averages


@dataclass(slots=True)
class Pace:
    """How long a model's steps take, as moving averages."""

    decode_s: float = 0.0
    token_s: float = 0.0

    def budget(self, most: int, decoding: int, reading: int) -> int:
        """Prompt tokens the next step may read.

        Args:
            most: the limit when nobody decodes. decoding, reading: choices that generate, and that wait to be read.
        """
        if not decoding:
            return most
        if not self.token_s or not self.decode_s:
            return TILE_TOKENS
        seconds = _SHARE * self.decode_s
        if reading > decoding:
            seconds = max(seconds, _STALL_S)
        return max(TILE_TOKENS, min(most, int(seconds / self.token_s)))

    def learn(self, seconds: float, decoding: int, read: int) -> None:
        """Take in a step that took `seconds` for `decoding` choices and `read` prompt tokens."""
        if decoding and not read:
            self.decode_s = _moved(self.decode_s, seconds)
        elif read:
            own_s = seconds - (self.decode_s if decoding else 0.0)
            self.token_s = _moved(self.token_s, max(own_s, 1e-6) / read)


def _moved(average: float, latest: float) -> float:
    return (1 - _NEWEST) * average + _NEWEST * latest if average else latest
