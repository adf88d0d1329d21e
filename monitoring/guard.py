"""Who may ask: the Host allow-list against DNS rebinding, read-only methods, and a key when the bind is public.

Reads    MONITOR_API_KEY; the name of this machine
Errors   Refusal (400, 401, 403, 405 or 429), always the same words; ConfigError for a public bind without a key
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from werkzeug.datastructures import Headers

from core.errors import ConfigError

KEY_VARIABLE = "MONITOR_API_KEY"
_FAILURES = 20  # wrong keys a minute before everybody with a wrong key must wait
_WINDOW_S = 60.0


class Refusal(Exception):
    """A request that is not answered: an HTTP status, one line, and headers."""

    def __init__(self, status: int, message: str, fix: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.fix = fix
        self.headers = dict(headers or {})


class Guard:
    """Checks each request before anything else looks at it.

    Args:
        hosts: names and addresses that a Host header may carry, in lower case, without a port.
        key: what a caller must show, or None when only this machine can call.
        any_address: also take every literal IP address: rebinding needs a name.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        key: str | None = None,
        *,
        any_address: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._any_address = any_address
        self._key_digest = hashlib.sha256(key.encode()).digest() if key else None
        self._clock = clock
        self._failures: list[float] = []
        self._lock = threading.Lock()

    def check(self, method: str, headers: Headers, *, open_to_all: bool = False) -> None:
        """Raise Refusal unless this request may be answered. `open_to_all`: needs no key (/health)."""
        if not self._is_ours(headers.get("Host", "")):
            raise Refusal(403, "this Host is not served here", "use http://localhost:PORT/ or set monitor.host")
        origin = headers.get("Origin")
        if origin is not None and not self._is_ours(origin.partition("://")[2]):
            raise Refusal(403, "requests from other pages are not answered")
        if method not in ("GET", "HEAD"):
            raise Refusal(405, "the monitor only looks", "use the dropforge command", {"Allow": "GET, HEAD"})
        if self._key_digest is not None and not open_to_all:
            self._check_key(headers)

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        return name in self._hosts or (self._any_address and _address(name) is not None)

    def _check_key(self, headers: Headers) -> None:
        shown = _shown_key(headers)
        digest = hashlib.sha256(shown).digest()
        if self._key_digest is not None and hmac.compare_digest(digest, self._key_digest):
            return
        with self._lock:
            now = self._clock()
            self._failures = [at for at in self._failures if now - at < _WINDOW_S]
            if shown and len(self._failures) >= _FAILURES:
                raise Refusal(429, "too many wrong keys", "wait a minute", {"Retry-After": "60"})
            if shown:
                self._failures.append(now)
        challenge = {"WWW-Authenticate": 'Basic realm="Dropforge monitor", charset="UTF-8"'}
        raise Refusal(401, "a key is needed", f"the password is the value of {KEY_VARIABLE}", challenge)


def _shown_key(headers: Headers) -> bytes:
    """The key in X-API-Key, in a Bearer token, or as the password of a browser's login; b'' without one."""
    if "X-API-Key" in headers:
        return headers["X-API-Key"].encode("latin-1", "replace")
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip().encode("ascii"), validate=True).partition(b":")[2]
        except (binascii.Error, UnicodeEncodeError):
            return b""
    return b""


def host_name(host: str) -> str:
    """The name in a Host header without its port, in lower case; '' when it is malformed."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or rest.startswith(":")) else ""
    name, colon, port = host.partition(":")
    return name if not colon or port.isdecimal() else ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """True when only this machine can reach a server bound there."""
    address = _address(host)
    return address.is_loopback if address else host == "localhost"


def build_guard(host: str, environment: Mapping[str, str]) -> Guard:
    """The guard for a bind address.

    Raises:
        ConfigError: anybody could call, and there is no key.
    """
    key = environment.get(KEY_VARIABLE) or None
    hosts = {"localhost", "127.0.0.1", "::1", host.lower()}
    if is_loopback(host):
        return Guard(hosts, key)
    if key is None:
        raise ConfigError(
            f"{host} can be reached by others and there is no key",
            where="monitor.host",
            fix=f"set the variable {KEY_VARIABLE}, or monitor.host to 127.0.0.1 and use ssh -L",
        )
    return Guard(hosts | {socket.gethostname().lower(), socket.getfqdn().lower()}, key, any_address=True)
