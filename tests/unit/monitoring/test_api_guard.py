"""Nobody makes the monitor do anything, from anywhere; what it shows cannot run."""

import base64

import pytest
from flask.testing import FlaskClient
from werkzeug.datastructures import Headers

from core.errors import ConfigError
from monitoring.api.events import Streams
from monitoring.guard import Guard, Refusal, build_guard, host_name
from sample_root import SampleRoot

ADDRESSES = ["/", "/health", "/metrics", "/api/status", "/api/jobs/x", "/api/events", "/ui/app.css", "/nothing"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_only_looking_is_possible(client: FlaskClient, method: str, address: str) -> None:
    answer = client.open(address, method=method, data=b"{}", content_type="text/plain")
    assert answer.status_code == 405
    assert answer.content_type == "application/json"
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "[::1", "10.0.0.1"]
)
def test_a_foreign_host_gets_nothing(client: FlaskClient, method: str, address: str, host: str) -> None:
    answer = client.open(address, method=method, headers={"Host": host})
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://localhost.evil.example"])
def test_a_foreign_page_gets_nothing(client: FlaskClient, origin: str) -> None:
    assert client.get("/api/status", headers={"Origin": origin}).status_code == 403


def test_our_own_page_may_ask(client: FlaskClient) -> None:
    assert client.get("/api/status", headers={"Origin": "http://localhost:8081"}).status_code == 200


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_answer_carries_the_headers_of_safety(client: FlaskClient, address: str) -> None:
    answer = client.get(address, buffered=False)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers
    answer.close()


@pytest.mark.parametrize(
    "path",
    [
        "../app.py", "%2e%2e%2fapp.py", "..%252fapp.py", "/etc/passwd", "//etc/passwd", "js/../../app.py",
        "js\\..\\app.py", "js/main.js%00.css", "package.json", "node_modules/uplot/package.json",
        ".", "", "js/", "a" * 5000,
    ],
)  # fmt: skip
def test_nothing_outside_the_list_of_page_files_is_read(client: FlaskClient, path: str) -> None:
    answer = client.get(f"/ui/{path}")
    assert answer.status_code in (404, 308)
    assert b"root:" not in answer.data
    assert b"import" not in answer.data


def test_the_page_has_no_inline_script_or_style(client: FlaskClient) -> None:
    page = client.get("/").get_data(as_text=True)
    assert "<style" not in page
    assert " style=" not in page
    assert " onclick" not in page
    assert all("src=" in part.partition(">")[0] for part in page.split("<script")[1:])


def test_json_never_comes_as_html_whatever_a_file_is_called(client: FlaskClient, sample: SampleRoot) -> None:
    sample.job("done", "<script>alert(1)</script>.jsonl")
    answer = client.get("/api/jobs")
    assert answer.content_type == "application/json"


@pytest.mark.parametrize(
    "address", ["/nothing", "/api/", "/api/status/", "/ui/x", "/api/jobs/a/b", "/%ff%fe", "/api/%00"]
)
def test_an_unknown_address_is_a_json_error_without_a_traceback(client: FlaskClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 404
    assert answer.content_type == "application/json"
    assert b"Traceback" not in answer.data


def test_a_failure_inside_says_no_more_than_that(
    client: FlaskClient, sample: SampleRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.api.plugins.checkpoints.read_status", lambda _path: 1 / 0)
    answer = client.get("/api/leaderboard")
    assert answer.status_code == 500
    assert b"division" not in answer.data
    assert b"Traceback" not in answer.data


def test_the_cap_on_streams_is_503_and_a_closed_one_frees_its_place(client: FlaskClient) -> None:
    first, second = (client.get("/api/events", buffered=False) for _ in range(2))
    third = client.get("/api/events")
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 503)
    assert third.headers["Retry-After"]
    first.close()
    fourth = client.get("/api/events", buffered=False)
    assert fourth.status_code == 200
    fourth.close()
    second.close()


def test_asking_for_the_head_of_the_stream_takes_no_place(client: FlaskClient, streams: Streams) -> None:
    for _ in range(5):
        assert client.head("/api/events").status_code == 200
    streams.open(None, lambda: True).close()


KEY = "sésame"


def guarded(headers: dict[str, str], guard: Guard) -> int:
    try:
        guard.check("GET", Headers({"Host": "localhost"} | headers))
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": KEY.encode().decode("latin-1")}, 200),
        ({"Authorization": f"Bearer {KEY.encode().decode('latin-1')}"}, 200),
        ({"Authorization": "Basic " + base64.b64encode(f"anybody:{KEY}".encode()).decode()}, 200),
        ({"X-API-Key": "wrong"}, 401),
        ({"X-API-Key": "ключ"}, 401),
        ({"X-API-Key": "x" * 1_000_000}, 401),
        ({"Authorization": "Basic !!!"}, 401),
        ({"Authorization": "Basic ключ"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Bearer a, Bearer {KEY}"}, 401),
    ],
)
def test_a_key_is_compared_as_bytes_and_a_wrong_one_is_401(headers: dict[str, str], status: int) -> None:
    assert guarded(headers, Guard({"localhost"}, KEY)) == status


def test_guessing_keys_is_slowed_and_the_right_key_still_works(clock: object) -> None:
    guard = Guard({"localhost"}, "right", clock=clock)  # type: ignore[arg-type]
    answers = [guarded({"X-API-Key": f"guess {n}"}, guard) for n in range(30)]
    assert answers == [401] * 20 + [429] * 10
    assert guarded({"X-API-Key": "right"}, guard) == 200
    clock.advance(61)  # type: ignore[attr-defined]
    assert guarded({"X-API-Key": "guess"}, guard) == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "forge.lan"])
def test_a_public_bind_without_a_key_is_refused_at_the_start(host: str) -> None:
    with pytest.raises(ConfigError, match="no key"):
        build_guard(host, {})
    build_guard(host, {"MONITOR_API_KEY": "x"})


def test_a_public_bind_answers_addresses_and_its_own_name_but_no_other_name() -> None:
    guard = build_guard("0.0.0.0", {"MONITOR_API_KEY": "x"})
    for host, status in (("192.168.1.7:8080", 200), ("[fe80::1]:8080", 200), ("evil.example", 403)):
        assert guarded({"Host": host, "X-API-Key": "x"}, guard) == status


@pytest.mark.parametrize(
    ("header", "name"),
    [("Localhost:8080", "localhost"), ("[::1]:8080", "::1"), ("[::1]", "::1"), ("a:b:c", ""), ("[::1]x", ""), ("", "")],
)
def test_the_name_in_a_host_header(header: str, name: str) -> None:
    assert host_name(header) == name
