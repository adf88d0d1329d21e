"""Who may ask: keys, host names and origins, checked before any route (inside the inference server; torch-free).

Keys come from INFERENCE_API_KEY and INFERENCE_ADMIN_KEY only, are compared as bytes in constant time and are never
logged.
"""

import hmac
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from core.errors import ConfigError

_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
_FAILURES_A_MINUTE = 60.0  # wrong keys answered as such; beyond it 429, so guessing is slow and logs stay small


@dataclass(frozen=True, slots=True)
class Keys:
    """The configured keys as bytes; None: not configured. Without an admin key the answer key guards admin too."""

    answer: bytes | None
    admin: bytes | None

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "Keys":
        source = os.environ if env is None else env
        answer = os.fsencode(source.get("INFERENCE_API_KEY", "")) or None
        return cls(answer, os.fsencode(source.get("INFERENCE_ADMIN_KEY", "")) or answer)

    def check_bind(self, host: str) -> None:
        """Refuse a bind that others can reach while a key is missing. Raises ConfigError."""
        if not is_loopback(host) and (self.answer is None or self.admin is None):
            raise ConfigError(
                f"inference.host {host} can be reached from outside and INFERENCE_API_KEY is not set",
                where="inference.host",
                fix="set INFERENCE_API_KEY and INFERENCE_ADMIN_KEY, or inference.host to 127.0.0.1",
            )

    def allows(self, given: bytes | None, *, admin: bool) -> bool:
        """True when the key fits; the admin key also opens what the answer key opens."""
        wanted = self.admin if admin else self.answer
        if wanted is None:
            return True
        if given is None:
            return False
        fits = hmac.compare_digest(given, wanted)
        also = self.admin is not None and hmac.compare_digest(given, self.admin)
        return fits or also


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in _LOOPBACK_NAMES


def given_key(authorization: str | None, x_api_key: str | None) -> bytes | None:
    """The key of a request. WSGI hands header bytes over as Latin-1; two Authorization headers arrive joined and fit
    nothing.
    """
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        return key.strip().encode("latin-1") if scheme.lower() == "bearer" else None
    return x_api_key.strip().encode("latin-1") if x_api_key is not None else None


class HostList:
    """Host headers that are answered: addresses (a rebinding page has a name), this machine's names, and configured
    ones.
    """

    def __init__(self, names: Iterable[str]) -> None:
        own = {socket.gethostname(), *_LOOPBACK_NAMES, *names}
        self._names = {name.lower() for name in own if name}

    def allows(self, header: str) -> bool:
        name = _host_name(header)
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower().rstrip(".") in self._names
        return True

    def same_site(self, origin: str, header: str) -> bool:
        """True when a page of this very server asks; other origins are refused on every route."""
        scheme, separator, rest = origin.partition("://")
        return bool(separator) and scheme in ("http", "https") and rest == header


def _host_name(header: str) -> str | None:
    """`name[:port]` or `[v6][:port]` -> the name; None for anything else."""
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        return name if bracket and (not port or (port[1:].isdecimal() and port[0] == ":")) else None
    name, colon, port = header.partition(":")
    return name if name and (not colon or port.isdecimal()) else None


class FailureLimit:
    """A bucket of wrong keys: refilled evenly, the same for everybody, so it holds no addresses."""

    def __init__(self, a_minute: float = _FAILURES_A_MINUTE) -> None:
        self._size = a_minute
        self._left = a_minute
        self._at_s = time.monotonic()
        self._lock = threading.Lock()

    def spend(self) -> bool:
        """Count a failure. Returns False when too many came."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._size, self._left + (now - self._at_s) * self._size / 60)
            self._at_s = now
            if self._left < 1:
                return False
            self._left -= 1
            return True
