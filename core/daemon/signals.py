"""Signals as flags: the handlers only note what came, the loop acts (beside all arrows).

Effects  SIGTERM and SIGINT count (the second means now; a parent handles SIGINT for its children), SIGUSR1 asks for a
         commit, SIGHUP for the configuration
"""

import signal
from types import FrameType

from core.daemon.wakeup import Wakeup


class Signals:
    """What has been signalled and not yet acted on."""

    def __init__(self) -> None:
        self.ends = 0
        self.checkpoint = False
        self.reload = False

    def install(self, wakeup: Wakeup, *, ignore_sigint: bool = False) -> None:
        """Take the handlers over. Call from the main thread."""
        signal.set_wakeup_fd(wakeup.write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # only the wake-up: the supervisor looks itself
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, self.note)
        if ignore_sigint:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        if number == signal.SIGUSR1:
            self.checkpoint = True
        elif number == signal.SIGHUP:
            self.reload = True
        else:
            self.ends += 1

    def take_checkpoint(self) -> bool:
        asked, self.checkpoint = self.checkpoint, False
        return asked

    def take_reload(self) -> bool:
        asked, self.reload = self.reload, False
        return asked
