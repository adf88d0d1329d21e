"""Waitress under the monitor: every configured port from one thread pool, and an end by signal (beside all arrows).

Reads    the network          Effects  listens on monitor.ports; ends within two seconds of SIGTERM or SIGINT
Errors   ConfigError naming monitor.ports when a port is taken
"""

import errno
import logging
import socket
import threading
from collections.abc import Callable, Sequence

from flask import Flask
from waitress import wasyncore
from waitress.server import create_server

from core.errors import ConfigError
from monitoring.api.events import MAX_STREAMS

_SPARE_THREADS = 8  # for everything that is no stream
_CONNECTIONS = 2000  # slow and half-open ones cost a descriptor, not a thread
_IDLE_S = 60
_MOST_BODY_BYTES = 64 * 1024
_LOOP_S = 0.25


def open_sockets(host: str, ports: Sequence[int]) -> list[socket.socket]:
    """Bind every port.

    Raises:
        ConfigError: a port is taken or may not be bound, or the host is not an address of this machine.
    """
    opened: list[socket.socket] = []
    for port in dict.fromkeys(ports):
        try:
            opened.append(_bind(host, port))
        except (OSError, OverflowError) as error:
            for other in opened:
                other.close()
            raise _port_error(error, host, port) from error
    return opened


def _bind(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # of the two addresses of `localhost` the one that http://127.0.0.1 reaches
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1024)
    except OSError:
        bound.close()
        raise
    return bound


def _port_error(error: Exception, host: str, port: int) -> ConfigError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        message = f"port {port} on {host} is taken by another program"
        return ConfigError(message, where="monitor.ports", fix=f"free it, or --set monitor.ports='[{port + 2}]'")
    return ConfigError(f"cannot listen on {host} port {port}: {error}", where="monitor.host, monitor.ports")


def serve(app: Flask, sockets: list[socket.socket], stopping: threading.Event, end_streams: Callable[[], None]) -> None:
    """Answer until `stopping` is set, then end streams, let running answers finish for two seconds, and close."""
    logging.getLogger("waitress").setLevel(
        logging.ERROR
    )  # every client that leaves and every busy moment is a line else
    connections: dict[int, wasyncore.dispatcher] = {}
    server = create_server(
        app,
        map=connections,
        sockets=sockets,
        threads=MAX_STREAMS + _SPARE_THREADS,
        channel_request_lookahead=1,  # tells a stream that its client left
        connection_limit=_CONNECTIONS,
        channel_timeout=_IDLE_S,
        cleanup_interval=10,
        max_request_body_size=_MOST_BODY_BYTES,
        max_request_header_size=32 * 1024,
        backlog=1024,
        asyncore_use_poll=True,  # select() ends at descriptor 1024
        ident="dropforge-monitor",
    )
    while not stopping.is_set():
        wasyncore.loop(timeout=_LOOP_S, use_poll=True, map=connections, count=1)
    end_streams()
    for _ in range(int(2 / _LOOP_S)):
        if not any(getattr(channel, "requests", None) for channel in connections.values()):
            break
        wasyncore.loop(timeout=_LOOP_S, use_poll=True, map=connections, count=1)
    server.task_dispatcher.shutdown(timeout=1)
    wasyncore.close_all(connections)
