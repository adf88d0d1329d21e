"""waitress with an end: threads enough for every stream, and a SIGTERM that lets answers finish (inside the inference
server).

Errors   ConfigError naming inference.port when the port is taken
Units    seconds
Threads  every request under way or waiting holds one, and eight more keep /health and /metrics answering
"""

import errno
import logging
import signal
import threading
import time
from types import FrameType

import waitress
from flask import Flask

from core.errors import ConfigError
from inference.app import MAX_BODY_BYTES

logger = logging.getLogger(__name__)

SPARE_THREADS = 8
_FLUSH_S = 3.0


class Server:
    """A bound socket and the threads that answer on it."""

    def __init__(self, app: Flask, host: str, port: int, threads: int) -> None:
        """Bind. Raises ConfigError when the address cannot be had."""
        try:
            self._waitress = waitress.create_server(
                app,
                host=host,
                port=port,
                threads=threads,
                channel_request_lookahead=1,  # without it waitress cannot tell that the client left
                connection_limit=4 * threads + 1000,
                channel_timeout=120,
                max_request_body_size=MAX_BODY_BYTES,
                max_request_header_size=64 << 10,
                ident=None,
                clear_untrusted_proxy_headers=True,
            )
        except OSError as error:
            raise ConfigError(
                _bind_problem(error, host, port),
                where="inference.port",
                fix="--set inference.port=N, or stop the other program",
            ) from error
        self._thread = threading.Thread(target=self._waitress.run, name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Hand out what is written already, for up to three seconds, then close the sockets."""
        deadline = time.monotonic() + _FLUSH_S
        while time.monotonic() < deadline and self._unsent():
            time.sleep(0.02)
        self._waitress.task_dispatcher.shutdown(cancel_pending=True, timeout=1)
        self._waitress.close()

    def _unsent(self) -> bool:
        channels = list(self._waitress.active_channels.values())
        return any(channel.total_outbufs_len or channel.requests for channel in channels)


def _bind_problem(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another program"
    return f"cannot bind {host}:{port}: {error.strerror or error}"


def stop_event(*, ignore_sigint: bool) -> threading.Event:
    """An event that SIGTERM sets, and SIGINT too unless a parent handles it for its children. Main thread only."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignore_sigint else on_signal)
    return stop
