"""One torch thread or all of them, whichever is faster now (inside the inference server).

On a quiet machine two threads take half the time of one; beside a trainer that holds the cores, ten times as much,
because a team waits at each barrier for its slowest member (docs/log.md, Serving). No look at the machine tells which
it is, so a decode step is tried the other way from time to time. Results have the same bits either way.

Units    seconds; steps
"""

from collections.abc import Callable

import torch

_FIRST_PAUSE = 16
_LONGEST_PAUSE = 1024  # after tries that did not pay; each may cost a long step
_ALARM = 3.0  # times the step before it: the machine may just have become busy, which is looked into at once
_BETTER = 0.9  # of the step before it; a try must win twice, so that one slow step decides nothing


class ThreadChoice:
    """Chooses before each step. A model too small to gain gets `most` 1, and nothing is ever tried."""

    def __init__(self, most: int, use: Callable[[int], None] = torch.set_num_threads) -> None:
        self._most = self.count = most
        self._use = use
        self._pause, self._left = _FIRST_PAUSE, 1
        self._wins = 0
        self._trying = False
        self._last: tuple[int, float] | None = None  # rows and seconds of the step before, when it can be compared

    def before(self, decoding: int, reading: bool) -> None:
        """A step of so many decoding contexts is about to run; `reading`: prompts too, so it compares with nothing."""
        comparable = not reading and self._last is not None and self._last[0] == decoding
        self._trying = self._most > 1 and self._left <= 0 and comparable
        self._use(self._other() if self._trying else self.count)

    def after(self, decoding: int, reading: bool, seconds: float) -> None:
        """The step took `seconds`."""
        if self._trying and self._last is not None:
            self._judge(seconds < _BETTER * self._last[1])
        elif not reading:
            alarm = self.count > 1 and self._last is not None and seconds > _ALARM * self._last[1]
            self._left = min(self._left, 1) - 1 if alarm else self._left - 1
        self._last = None if reading or self._trying else (decoding, seconds)

    def _judge(self, better: bool) -> None:
        if not better:
            self._wins, self._pause = 0, min(2 * self._pause, _LONGEST_PAUSE)
            self._left = self._pause
            return
        self._wins, self._left = self._wins + 1, 1
        if self._wins == 2:
            self.count, self._wins = self._other(), 0
            self._pause = self._left = _FIRST_PAUSE

    def _other(self) -> int:
        return 1 if self.count > 1 else self._most
