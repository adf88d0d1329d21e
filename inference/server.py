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
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.task import ErrorTask

from core.errors import ConfigError
from inference.app import MAX_BODY_BYTES, unread

logger = logging.getLogger(__name__)

SPARE_THREADS = 8
MAX_HEADER_BYTES = 64 << 10
_FLUSH_S = 3.0
_SIZES = {
    413: f"a body holds less than {MAX_BODY_BYTES >> 20} MB here",
    431: f"the headers hold less than {MAX_HEADER_BYTES >> 10} KB here",
}


class Server:
    """A bound socket and the threads that answer on it."""

    def __init__(self, app: Flask, host: str, port: int, threads: int) -> None:
        """Bind. Raises ConfigError when the address cannot be had."""
        sockets: dict[int, object] = {}  # a name may stand for several addresses, each with a listener of its own
        try:
            self._waitress = waitress.create_server(
                app,
                map=sockets,
                host=host,
                port=port,
                threads=threads,
                channel_request_lookahead=1,  # without it waitress cannot tell that the client left
                connection_limit=4 * threads + 1000,
                channel_timeout=120,
                max_request_body_size=MAX_BODY_BYTES,
                max_request_header_size=MAX_HEADER_BYTES,
                ident=None,
                clear_untrusted_proxy_headers=True,
            )
        except OSError as error:
            raise ConfigError(
                _bind_problem(error, host, port),
                where="inference.port",
                fix="--set inference.port=N, or stop the other program",
            ) from error
        self._listeners = [each for each in sockets.values() if isinstance(each, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = _channel_of(app)
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
        channels = [channel for listener in self._listeners for channel in list(listener.active_channels.values())]
        return any(channel.total_outbufs_len or channel.requests for channel in channels)


def _channel_of(app: Flask) -> type[HTTPChannel]:
    """Connections whose requests are answered as the app answers even where waitress refuses to hand them over."""

    class Refusal(ErrorTask):  # type: ignore[misc]  # waitress has no annotations
        def execute(self) -> None:
            error = self.request.error
            told = _SIZES.get(error.code, error.body)
            answer = unread(app, error.code, error.reason, told, self.request.headers.get("X_REQUEST_ID"))
            body = answer.get_data()
            self.status = f"{error.code} {error.reason}"
            self.response_headers.extend(answer.headers.items())
            self.set_close_on_finish()
            self.content_length = len(body)
            self.write(body)

    class Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no annotations
        error_task_class = Refusal

    return Channel


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
