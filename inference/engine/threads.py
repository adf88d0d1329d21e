"""One torch thread or all of them, whichever is faster now (inside the inference server).

On a quiet machine two threads take half the time of one; beside a trainer that holds the cores, ten times as much,
because a team waits at each barrier for its slowest member (docs/log.md, Serving). No look at the machine tells which
it is, so a decode step is tried the other way from time to time. Results have the same bits either way.

Units    seconds; steps
"""

import statistics
from collections import deque
from collections.abc import Callable

import torch

_FIRST_PAUSE = 16
_LONGEST_PAUSE = 1024  # after tries that did not pay; each may cost a long step
_ALARM = 3.0  # times what is usual: the machine may just have become busy, which is looked into after two more steps
_BETTER = 0.9  # of what is usual
_USUAL = 5  # steps whose median is usual: requests that come and go disturb single ones, and twice in a row too
_VOTES = 2  # steps the other way must be better, or worse, before a try ends


class ThreadChoice:
    """Chooses before each step. A model too small to gain gets `most` 1, and nothing is ever tried."""

    def __init__(self, most: int, use: Callable[[int], None] = torch.set_num_threads) -> None:
        self._most = self.count = most
        self._use = use
        self._pause, self._left = _FIRST_PAUSE, 1
        self._trying = False
        self._better = self._worse = 0
        self._decoding = 0
        self._recent: deque[float] = deque(maxlen=_USUAL)  # seconds of steps with so many contexts and `count` threads

    def before(self, decoding: int, reading: bool) -> None:
        """A step of so many decoding contexts is about to run; `reading`: prompts too, so it compares with nothing."""
        if decoding != self._decoding and not reading:
            self._decoding = decoding
            self._recent.clear()
            self._better = self._worse = 0
        ready = self._left <= 0 and len(self._recent) == _USUAL
        self._trying = self._most > 1 and ready and not reading
        self._use(self._other() if self._trying else self.count)

    def after(self, decoding: int, reading: bool, seconds: float) -> None:
        """The step took `seconds`."""
        if reading:
            return
        if self._trying:
            self._vote(seconds / statistics.median(self._recent))
            return
        alarm = len(self._recent) == _USUAL and seconds > _ALARM * statistics.median(self._recent)
        self._left = min(self._left, 3 if alarm and self.count > 1 else self._left) - 1
        self._recent.append(seconds)

    def _vote(self, ratio: float) -> None:
        """A step the other way took `ratio` times as long as is usual."""
        self._better += ratio < _BETTER
        self._worse += _VOTES if ratio > _ALARM else ratio >= _BETTER
        if self._better >= _VOTES:
            self.count = self._other()
            self._recent.clear()
            self._pause = _FIRST_PAUSE
        elif self._worse >= _VOTES:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            return
        self._left = self._pause
        self._better = self._worse = 0

    def _other(self) -> int:
        return 1 if self.count > 1 else self._most
