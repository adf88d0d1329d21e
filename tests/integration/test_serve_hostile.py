"""Callers that leave, flood, lie or attack do not disturb the others."""

import concurrent.futures
import contextlib
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from serving_rig import ServerProcess, place, ready_root, running

pytestmark = pytest.mark.slow

CHAT = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    workspace, chain = ready_root(tmp_path_factory.mktemp("hostile") / "root", (0,))
    with running(workspace, "inference.max_streams=4", "inference.max_queue=4") as process:
        assert process.post("/admin/reload", place(chain[0], workspace.root / "served")).status_code == 200
        yield process


def metric(server: ServerProcess, name: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def idle(server: ServerProcess) -> bool:
    slots = server.get("/slots").json()
    return slots == {"running": [], "waiting": 0}


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_that_leaves_stops_its_generation(
    server: ServerProcess, wait_until: Callable[..., None], stream: bool
) -> None:
    body = {**CHAT, "max_tokens": 1900, "stream": stream, "logit_bias": {"2": -100, "0": -100}}
    with (
        contextlib.suppress(requests.Timeout),
        requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=0.5) as answer,
    ):
        next(answer.iter_lines())
    wait_until(lambda: idle(server), seconds=3, what="the end of a generation nobody reads")
    assert metric(server, "dropforge_requests_running") == 0


def test_a_flood_gets_503_with_retry_after_while_health_answers(server: ServerProcess) -> None:
    codes: list[tuple[int, str | None]] = []
    slowest = 0.0

    def ask(_: int) -> None:
        answer = server.post("/v1/chat/completions", {**CHAT, "max_tokens": 200})
        codes.append((answer.status_code, answer.headers.get("Retry-After")))

    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(ask, i) for i in range(60)]
        while not all(w.done() for w in waiting):
            began = time.monotonic()
            assert server.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    assert {code for code, _ in codes} == {200, 503}
    assert all(retry for code, retry in codes if code == 503)
    assert sum(code == 200 for code, _ in codes) >= 8
    assert slowest < 5  # seconds; the bound a monitor would use, not a benchmark


def test_half_open_and_silent_connections_do_not_keep_others_out(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(150):
            made = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            made.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" if number % 2 else b"GET /hea")
        assert server.get("/health").status_code == 200
        assert server.chat().status_code == 200


RAW_BODIES: list[tuple[bytes, str]] = [
    (b"", "application/json"),
    (b"{", "application/json"),
    (b"\xff\xfe{\x00}\x00", "application/json"),
    (b"[" * 100_000, "application/json"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "application/json"),
    (b'{"messages": [], "messages": []}', "application/json"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "application/json"),
    (b'{"\\udc00": 1}', "application/json"),
    (b'["\\udc00"]', "application/json"),
    (json.dumps(CHAT).encode(), "text/plain"),
    (json.dumps(CHAT).encode(), "application/x-www-form-urlencoded"),
    (json.dumps(CHAT).encode(), "multipart/form-data"),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/score", "/admin/reload"])
def test_broken_bodies_are_400_in_the_agreed_shape(server: ServerProcess, path: str) -> None:
    with requests.Session() as session:
        for body, kind in RAW_BODIES:
            answer = session.post(server.url + path, data=body, headers={"Content-Type": kind}, timeout=20)
            assert answer.status_code == 400, (body[:50], answer.text)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def raw(server: ServerProcess, *parts: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are. Returns status and body of the answer; 431 when the connection is cut before one."""
    with socket.create_connection(("127.0.0.1", server.port)) as made:
        made.settimeout(20)
        data = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                made.sendall(part)
        with contextlib.suppress(ConnectionError):
            data = b"".join(iter(lambda: made.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 431, json.loads(body) if body.startswith(b"{") else {}


POST = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
SCORE = b'{"text": "x y z"}'
ERROR_KEYS = {"message", "type", "param", "code"}


def test_what_the_web_server_refuses_by_itself_is_told_in_the_agreed_shape_too(server: ServerProcess) -> None:
    named = POST + b"X-Request-ID: mine\r\n"
    refused = {
        (413, "request_entity_too_large"): named + b"Content-Length: 1000000000\r\n\r\n{",  # before it is read
        (400, "bad_request"): named + b"Content-Length: 1x\r\n\r\n" + SCORE,
        (501, "not_implemented"): named + b"Transfer-Encoding: gzip\r\n\r\n" + SCORE,
        (431, "request_header_fields_too_large"): POST + b"X-Long: " + b"k" * 66_000 + b"\r\n\r\n",
    }
    for (status, code), request in refused.items():
        with socket.create_connection(("127.0.0.1", server.port)) as made:
            made.sendall(request)
            answer = http.client.HTTPResponse(made)
            answer.begin()
            body = json.loads(answer.read())
        assert (answer.status, body["error"]["code"], set(body["error"])) == (status, code, ERROR_KEYS)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["X-Dropforge-Checkpoint"] == server.get("/v1/checkpoints").json()["serving"]
        assert answer.headers["X-Request-ID"] == "mine" or status == 431
        assert (answer.headers["x-should-retry"] == "false") == (status < 500)


def test_lengths_that_lie_and_packed_bodies_are_4xx_and_the_next_request_is_answered(server: ServerProcess) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    endless = raw(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 200)
    both = raw(server, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    twice = raw(server, POST + b"Content-Length: 17\r\nContent-Length: 3\r\n\r\n" + SCORE)
    packed = raw(server, POST + b"Content-Encoding: gzip\r\nContent-Length: 17\r\n\r\n" + SCORE)
    strange = raw(server, POST + b"Content-Length: seventeen\r\n\r\n" + SCORE)
    answers = {"endless": endless, "both": both, "twice": twice, "packed": packed, "strange": strange}
    assert {name: status for name, (status, _) in answers.items() if not 400 <= status < 500} == {}
    assert endless[0] == 413
    assert packed[1]["error"]["code"] == "unsupported_content_encoding"
    assert server.post("/v1/score", {"text": "x y z"}).status_code == 200


def test_headers_and_addresses_of_any_size_are_4xx(server: ServerProcess) -> None:
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    key = raw(server, get + b"Authorization: Bearer " + b"k" * 1_000_000 + b"\r\n\r\n")
    query = raw(server, get.replace(b"/v1/models", b"/v1/models?" + b"q" * 100_000) + b"\r\n")
    nul = raw(server, get.replace(b"/v1/models", b"/v1/models/%00") + b"\r\n")
    slash = raw(server, get.replace(b"/v1/models", b"/v1/models/") + b"\r\n")
    broken = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: a\tb\x1b[2J\r\n\r\n")
    statuses = [key[0], query[0], nul[0], slash[0]]
    assert all(400 <= status < 500 for status in statuses), statuses
    assert broken[0] in (200, 400)
    assert server.chat().status_code == 200
    assert "\x1b" not in server.log()


def test_methods_that_no_route_knows_are_405_in_the_agreed_shape(server: ServerProcess) -> None:
    for method, path in (("OPTIONS", "/v1/models"), ("PUT", "/admin/rollback"), ("PATCH", "/v1/score")):
        answer = requests.request(method, server.url + path, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    head = requests.head(server.url + "/health", timeout=20)
    assert (head.status_code, head.content) == (200, b"")


FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "localhost.evil.example:8765"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
]


def test_foreign_hosts_and_origins_are_refused_on_every_method_and_nothing_allows_them(server: ServerProcess) -> None:
    def held() -> dict[str, Any]:  # the disk's free space is everybody's, and changes by itself
        return {**server.get("/v1/checkpoints").json(), "free_bytes": None}

    before = held()
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
    paths = ("/admin/rollback", "/v1/models", "/health", "/nowhere")
    with requests.Session() as session:
        for headers, method, path in itertools.product(FOREIGN, methods, paths):
            answer = session.request(method, server.url + path, headers=headers, json={}, timeout=20)
            assert answer.status_code == 403, (headers, method, path)
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert held() == before


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/%2e%2e%2fetc/passwd",
        "/..%252f",
        "//etc/passwd",
        "/v1/models/../../x",
        "/static/x",
        "/v1/models/",
    ],
)
def test_other_paths_are_404_as_json(server: ServerProcess, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as made:
        made.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        made.settimeout(10)
        data = b"".join(iter(lambda: made.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    assert b" 404 " in head.splitlines()[0]
    assert b"root:" not in body
    assert json.loads(body)["error"]["code"] == "not_found"


def test_a_wrong_method_is_405_and_names_the_right_one(server: ServerProcess) -> None:
    answer = requests.delete(server.url + "/v1/models", timeout=20)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 10**12},
        {"stop": ["x"] * 100_000},
        {"messages": [{"role": "user", "content": "x" * 300_000}]},
        {"logit_bias": {"99999999": 1}},
        {"n": 17},
        {"n": 5},
        {"model": "../../etc/passwd"},
        {"model": "1-aaaaaaaaaaaa"},
    ],
)
def test_greedy_wishes_are_4xx_naming_the_field(server: ServerProcess, change: dict[str, Any]) -> None:
    answer = server.post("/v1/chat/completions", {**CHAT, **change})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"]


def test_answers_alone_and_in_a_full_house_are_the_same(server: ServerProcess) -> None:
    texts = ["a", "tell me more about it " * 9, "left shift of ①⓪①", "what is 7 times 6?"]
    alone = [server.chat(t, max_tokens=60).json()["choices"][0]["message"]["content"] for t in texts]
    found: list[tuple[int, str]] = []

    def ask(place: int) -> None:
        answer = server.chat(texts[place % 4], max_tokens=60)
        while answer.status_code == 503:
            answer = server.chat(texts[place % 4], max_tokens=60)
        found.append((place % 4, answer.json()["choices"][0]["message"]["content"]))

    callers = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 16
    assert all(text == alone[place] for place, text in found)


def test_sigterm_lets_streams_finish_and_a_taken_port_is_one_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace, chain = ready_root(tmp_path_factory.mktemp("drain") / "root", (0,))
    with running(workspace) as process:
        assert process.post("/admin/reload", place(chain[0], workspace.root / "served")).status_code == 200
        second = ServerProcess(workspace)
        second.overrides = process.overrides
        with pytest.raises(AssertionError, match=r"port \d+ on 127\.0\.0\.1 is taken .*inference\.port") as caught:
            second.start()
        assert "Traceback" not in str(caught.value)
        body = {**CHAT, "max_tokens": 400, "stream": True, "logit_bias": {"2": -100, "0": -100}}
        with requests.post(f"{process.url}/v1/chat/completions", json=body, stream=True, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            code: list[int] = []
            stopper = threading.Thread(target=lambda: code.append(process.stop()))
            stopper.start()
            rest = [line for line in lines if line]
            stopper.join()
        assert rest[-1] == b"data: [DONE]"
        assert code == [0]


def test_a_public_bind_without_keys_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace, _ = ready_root(tmp_path_factory.mktemp("public") / "root", ())
    server = ServerProcess(workspace, "inference.host=0.0.0.0")
    with pytest.raises(AssertionError, match="INFERENCE_API_KEY is not set"):
        server.start()
    assert server.process is not None
    assert server.process.returncode == 2
