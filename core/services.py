"""Calls between processes over HTTP, with retries that do no harm (publisher, daemon, CLI -> inference server, skill
servers).

Errors   ServiceUnavailable (nobody answers, or 502/503/504 to the end), ServiceAuthError (401, 403), ServiceHttpError
         (any other
         status of 400 and above), ServiceDecodeError (an answer that is no JSON object)
Units    seconds
Env      <NAME>_TIMEOUT_S, <NAME>_MAX_RETRIES, <NAME>_API_KEY, e.g. INFERENCE_TIMEOUT_S; they beat the defaults given in
         code
Effects  GET is retried; POST only when the caller says that twice is as good as once. Back-off doubles from 0.2 s with
         full jitter
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any  # answers are JSON objects of any shape

import requests

from core.errors import ConfigError, DropforgeError

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_RETRIED = frozenset({429, 502, 503, 504})
_LARGEST_ANSWER_BYTES = 64 << 20


class ServiceError(DropforgeError):
    """A service did not do what was asked."""

    code = 3100
    slug = "service"


class ServiceUnavailable(ServiceError):
    """Nobody answers there, or only with "try later"."""

    code = 3101
    slug = "service_unavailable"
    retryable = True
    http_status = 503


class ServiceHttpError(ServiceError):
    """The service answered with an error. `status` is the HTTP status, `body` the answer's JSON or None."""

    code = 3102
    slug = "service_http_error"

    def __init__(self, message: str, *, status: int, body: Mapping[str, Any] | None, where: str, fix: str = "") -> None:
        super().__init__(message, where=where, fix=fix)
        self.status = status
        self.body = body


class ServiceAuthError(ServiceHttpError):
    """The service refused the key."""

    code = 3103
    slug = "service_auth"


class ServiceDecodeError(ServiceError):
    """The answer is not what the protocol promises."""

    code = 3104
    slug = "service_decode"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that arrived whole."""

    status: int
    headers: Mapping[str, str]
    json: dict[str, Any]


def _from_environment(name: str, kind: Callable[[str], float], default: float, env: Mapping[str, str]) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no number", where=f"variable {name}", fix=f"unset {name}") from error
    if not 0 <= value < 1e6:
        raise ConfigError(f"{text!r} is out of range", where=f"variable {name}", fix=f"unset {name}")
    return value


class ServiceClient:
    """A client of one service. Not shared by threads: each makes its own."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        timeout_s: float = 30.0,
        max_retries: int = 4,
        api_key: str | None = None,
        env: Mapping[str, str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Make a client.

        Args:
            name: e.g. "inference"; gives the prefix of the environment variables.
            url: `http://host:port`.
            timeout_s: for connecting and for each silence while reading.
            api_key: beats the environment's; the publisher gives the admin key here.
            sleep, jitter: replaced in tests; jitter gives 0..1.

        Raises:
            ConfigError: a variable is no number.
        """
        source = os.environ if env is None else env
        prefix = name.upper()
        self.url = url.rstrip("/")
        self._name = name
        self._timeout_s = _from_environment(f"{prefix}_TIMEOUT_S", float, timeout_s, source)
        self._max_retries = int(_from_environment(f"{prefix}_MAX_RETRIES", int, max_retries, source))
        self._key = api_key or source.get(f"{prefix}_API_KEY") or None
        self._sleep = sleep
        self._jitter = jitter
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, no .netrc between our own machines

    def __enter__(self) -> "ServiceClient":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def get(self, path: str) -> Answer:
        """GET a JSON object. Raises the errors of the module's head."""
        return self._call("GET", path, None, retry=True, timeout_s=None)

    def post(
        self, path: str, body: Mapping[str, Any], *, repeatable: bool = False, timeout_s: float | None = None
    ) -> Answer:
        """POST a JSON object.

        Args:
            repeatable: twice is as good as once, so failures may be retried.
            timeout_s: for this call, when it takes longer than others.
        """
        return self._call("POST", path, body, retry=repeatable, timeout_s=timeout_s)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """POST and read the server-sent events of the answer as JSON objects, up to `[DONE]`. Never retried.

        Raises:
            ServiceHttpError: also for an error event in the middle.
        """
        response = self._send("POST", path, body, None, stream=True)
        try:
            if response.status_code >= 400:
                raise self._error(response)
            yield from self._events(response)
        except requests.RequestException as error:
            raise ServiceUnavailable(f"the answer broke off: {error}", where=response.url) from error
        finally:
            response.close()

    def _events(self, response: requests.Response) -> Iterator[dict[str, Any]]:
        for line in response.iter_lines():
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                return
            doc = self._decoded(line[6:], response.url)
            if "error" in doc:
                message = str(doc["error"].get("message", "failed")) if isinstance(doc["error"], dict) else "failed"
                raise ServiceHttpError(message, status=response.status_code, body=doc, where=response.url)
            yield doc
        raise ServiceDecodeError("the stream ended without [DONE]", where=response.url)

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, retry: bool, timeout_s: float | None
    ) -> Answer:
        tries = 1 + (self._max_retries if retry else 0)
        for attempt in range(tries):
            last = attempt == tries - 1
            try:
                response = self._send(method, path, body, timeout_s, stream=False)
            except ServiceUnavailable:
                if last:
                    raise
                self._pause(attempt, None)
                continue
            if response.status_code in _RETRIED and not last:
                self._pause(attempt, response.headers.get("Retry-After"))
                continue
            if response.status_code >= 400:
                raise self._error(response)
            return Answer(response.status_code, response.headers, self._decoded(response.content, response.url))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None, *, stream: bool
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            return self._session.request(
                method,
                f"{self.url}{path}",
                data=data,
                headers={k: v.encode() for k, v in headers.items()},
                timeout=timeout_s or self._timeout_s,
                allow_redirects=False,
                stream=stream,
            )
        except requests.RequestException as error:
            raise ServiceUnavailable(
                f"{self._name} does not answer: {_reason(error)}",
                where=f"{self.url}{path}",
                fix=f"start it (dropforge up, or dropforge serve on its machine); its log: dropforge logs {self._name}",
            ) from error

    def _pause(self, attempt: int, retry_after: str | None) -> None:
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**attempt)
        wait_s = longest * self._jitter()
        if retry_after is not None and retry_after.isdecimal():
            wait_s = max(wait_s, min(float(retry_after), _LONGEST_PAUSE_S))
        self._sleep(wait_s)

    def _decoded(self, data: bytes, where: str) -> dict[str, Any]:
        if len(data) > _LARGEST_ANSWER_BYTES:
            raise ServiceDecodeError(f"an answer of {len(data)} bytes", where=where)
        try:
            doc = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ServiceDecodeError(f"the answer is no JSON: {error}", where=where) from error
        if not isinstance(doc, dict):
            raise ServiceDecodeError("the answer is no JSON object", where=where)
        return doc

    def _error(self, response: requests.Response) -> ServiceError:
        try:
            body: dict[str, Any] | None = self._decoded(response.content, response.url)
        except ServiceDecodeError:
            body = None
        status = response.status_code
        detail = body.get("error") if body is not None else None
        message = str(detail["message"]) if isinstance(detail, dict) and "message" in detail else f"HTTP {status}"
        if status in (401, 403):
            prefix = self._name.upper()
            fix = f"set {prefix}_API_KEY (or {prefix}_ADMIN_KEY for admin calls) as on the server"
            return ServiceAuthError(message, status=status, body=body, where=response.url, fix=fix)
        if status in _RETRIED:
            return ServiceUnavailable(message, where=response.url, fix="try again later")
        return ServiceHttpError(message, status=status, body=body, where=response.url)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "timeout"
    return "connection refused or lost" if isinstance(error, requests.ConnectionError) else type(error).__name__
