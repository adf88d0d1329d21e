"""Whether the ports of the settings are free, asked before anything is started, and whether what was started answers
there. Beside the arrows: the CLI.

Reads    the network stack: binds each port for an instant; GET of one address          Units  seconds
Errors   ConfigError, one line, naming the setting that holds the taken port
"""

import errno
import http.client
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from core.errors import ConfigError
from core.settings import Settings

_POLL_S = 0.1
_ANSWER_S = 0.5  # on this machine; whoever asks has other things to do meanwhile


@dataclass(frozen=True, slots=True)
class Address:
    """Where a process will listen, and the setting that says so."""

    host: str
    port: int
    setting: str


def addresses(settings: Settings, *, serve: bool = True, monitor: bool = True) -> list[Address]:
    """What the inference server and the monitor will bind."""
    inference = [Address(settings.inference.host, settings.inference.port, "inference.port")] if serve else []
    watched = [Address(settings.monitor.host, port, "monitor.ports") for port in settings.monitor.ports]
    return [*inference, *(watched if monitor else [])]


def problem(address: Address) -> str | None:
    """Why the address cannot be bound, or None."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            return "is taken by another process" if taken else f"cannot be used: {error.strerror}"
    return None


def told(refused: Sequence[tuple[Address, str]]) -> str:
    """All addresses that cannot be had, and why."""
    return ", ".join(f"port {address.port} on {address.host} {why}" for address, why in refused)


def another(refused: Sequence[tuple[Address, str]]) -> str:
    """What to do about it."""
    options = " ".join(f"--set {setting}=..." for setting in dict.fromkeys(address.setting for address, _ in refused))
    return f"choose another with {options} or in config.json"


def require_free(wanted: Sequence[Address], wait_s: float) -> None:
    """Return when every address is free, waiting `wait_s` seconds for an earlier instance to let go.

    Raises:
        ConfigError: some are not; names all of them and their settings.
    """
    deadline = time.monotonic() + wait_s
    while refused := [(address, why) for address in wanted if (why := problem(address))]:
        if time.monotonic() >= deadline:
            raise ConfigError(told(refused), where=refused[0][0].setting, fix=another(refused))
        time.sleep(_POLL_S)


def answers(url: str) -> bool:
    """True when a GET of this `http://host:port/path` is answered with 200 at once."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=_ANSWER_S)
    try:
        connection.request("GET", at.path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
