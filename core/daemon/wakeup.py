"""Waking the daemon's loop from a signal, a thread or a finished future, without a lock (beside all arrows).

Effects  a non-blocking pipe: writing a byte is safe in a signal handler, where an Event's lock is not
"""

import contextlib
import os
import select


class Wakeup:
    """`set()` from anywhere, `wait()` from the loop."""

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self.write_fd, False)

    def set(self) -> None:
        """Make the present or the next `wait` return at once."""
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes just as well
            os.write(self.write_fd, b"\0")

    def wait(self, timeout_s: float) -> bool:
        """Sleep until woken or until `timeout_s` seconds have passed. Returns True when woken."""
        ready, _, _ = select.select([self._read_fd], [], [], max(0.0, timeout_s))
        if not ready:
            return False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_fd, 4096):
                pass
        return True

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self.write_fd)
