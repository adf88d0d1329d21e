"""Calls are retried when that does no harm, and every failure has its own type."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from core.errors import ConfigError
from core.services import ServiceAuthError, ServiceClient, ServiceDecodeError, ServiceHttpError, ServiceUnavailable


class Script(http.server.ThreadingHTTPServer):
    """Answers requests with the scripted (status, headers, body), one after the other, and remembers what came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, dict[str, str], bytes]] = []
        self.seen: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((f"{self.command} {self.path}", dict(self.headers), body))
        status, headers, data = self.server.script.pop(0)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()
    thread = threading.Thread(target=script.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield script
    script.shutdown()
    thread.join()
    script.server_close()


def client(server: Script, pauses: list[float] | None = None, **options: Any) -> ServiceClient:
    kept = [] if pauses is None else pauses
    options = {"env": {}, **options}
    return ServiceClient("inference", server.url, sleep=kept.append, jitter=lambda: 1.0, **options)


OK = (200, {}, b'{"a": 1}')
BUSY = (503, {}, b"{}")


def test_a_get_is_retried_with_doubling_pauses_until_it_works(server: Script) -> None:
    server.script = [BUSY, BUSY, (502, {}, b""), OK]
    pauses: list[float] = []
    with client(server, pauses) as one:
        assert one.get("/x").json == {"a": 1}
    assert pauses == [0.2, 0.4, 0.8]


def test_retry_after_is_honoured_up_to_a_bound(server: Script) -> None:
    server.script = [(503, {"Retry-After": "3"}, b"{}"), (503, {"Retry-After": "99999"}, b"{}"), OK]
    pauses: list[float] = []
    with client(server, pauses) as one:
        one.get("/x")
    assert pauses == [3.0, 10.0]


def test_a_post_is_sent_once_unless_repeating_is_harmless(server: Script) -> None:
    server.script = [BUSY]
    with client(server) as one, pytest.raises(ServiceUnavailable):
        one.post("/x", {})
    server.script = [BUSY, OK]
    with client(server) as one:
        assert one.post("/x", {"b": "é"}, repeatable=True).status == 200
    assert json.loads(server.seen[-1][2]) == {"b": "é"}


def test_retries_end(server: Script) -> None:
    server.script = [BUSY] * 3
    with client(server, max_retries=2) as one, pytest.raises(ServiceUnavailable):
        one.get("/x")
    assert server.script == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, ServiceAuthError), (403, ServiceAuthError), (400, ServiceHttpError), (500, ServiceHttpError)],
)
def test_other_errors_are_not_retried_and_carry_the_servers_words(server: Script, status: int, kind: type) -> None:
    server.script = [(status, {}, b'{"error": {"message": "because", "code": "c"}}')]
    with client(server) as one, pytest.raises(kind, match="because") as caught:
        one.get("/x")
    assert caught.value.status == status
    assert caught.value.body == {"error": {"message": "because", "code": "c"}}


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"", b"\xff"])
def test_an_answer_that_is_no_object_is_a_decode_error(server: Script, body: bytes) -> None:
    server.script = [(200, {}, body)]
    with client(server) as one, pytest.raises(ServiceDecodeError):
        one.get("/x")


def test_nobody_there_is_unavailable_and_says_where(server: Script) -> None:
    with (
        ServiceClient("skills", "http://127.0.0.1:9", max_retries=0, env={}) as one,
        pytest.raises(ServiceUnavailable, match="skills does not answer: connection refused"),
    ):
        one.get("/x")


def test_redirects_are_not_followed(server: Script) -> None:
    server.script = [(302, {"Location": "http://evil.example/"}, b"{}")]
    with client(server) as one:
        assert one.get("/x").status == 302


def test_the_key_comes_from_the_caller_else_from_the_environment(server: Script) -> None:
    server.script = [OK, OK, OK]
    env = {"INFERENCE_API_KEY": "schlüssel"}
    for options in ({"env": env}, {"env": env, "api_key": "mine"}, {"env": {}}):
        with client(server, **options) as one:
            one.get("/x")
    keys = [headers.get("Authorization") for _, headers, _ in server.seen]
    assert keys == ["Bearer " + "schlüssel".encode().decode("latin-1"), "Bearer mine", None]


def test_the_environment_sets_timeouts_and_retries_and_nonsense_is_refused(server: Script) -> None:
    server.script = [BUSY]
    with client(server, env={"INFERENCE_MAX_RETRIES": "0"}) as one, pytest.raises(ServiceUnavailable):
        one.get("/x")
    for env in ({"INFERENCE_TIMEOUT_S": "soon"}, {"INFERENCE_MAX_RETRIES": "-1"}, {"INFERENCE_TIMEOUT_S": "nan"}):
        with pytest.raises(ConfigError, match="INFERENCE_"):
            client(server, env=env)


def test_a_stream_gives_its_events_and_must_end_with_done(server: Script) -> None:
    event = b'data: {"n": 1}\n\n'
    server.script = [(200, {}, b": ping\n\n" + event * 2 + b"data: [DONE]\n\n"), (200, {}, event)]
    with client(server) as one:
        assert list(one.stream("/x", {})) == [{"n": 1}, {"n": 1}]
        with pytest.raises(ServiceDecodeError, match="DONE"):
            list(one.stream("/x", {}))


def test_an_error_inside_a_stream_is_raised(server: Script) -> None:
    server.script = [
        (200, {}, b'data: {"error": {"message": "broke"}}\n\n'),
        (400, {}, b'{"error": {"message": "bad"}}'),
    ]
    with client(server) as one:
        for words in ("broke", "bad"):
            with pytest.raises(ServiceHttpError, match=words):
                list(one.stream("/x", {}))
