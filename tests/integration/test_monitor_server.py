"""The monitor as a process: its ports, its end, and what bad clients can do to it (nothing)."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from core.daemon.pid_manager import PARENT_VARIABLE
from core.paths import Workspace
from farm import free_port
from monitor_process import MonitorProcess
from monitoring.api.events import MAX_STREAMS
from sample_root import SampleRoot, working_day, write_root


@pytest.fixture
def monitor(workspace: Workspace) -> Iterator[MonitorProcess]:
    process = MonitorProcess(workspace.root)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def shared_monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MonitorProcess]:
    """One process for all malformed requests: it must stand every one of them."""
    process = MonitorProcess(write_root(tmp_path_factory.mktemp("shared")).ws.root)
    yield process
    assert process.process.poll() is None
    code, said = process.stop()
    assert code == 0
    assert "Traceback" not in said


@pytest.fixture
def sample(workspace: Workspace) -> SampleRoot:
    return working_day(workspace)


def raw(monitor: MonitorProcess, request: bytes) -> bytes:
    """Send bytes as they are; return one answer, whole as its Content-Length says."""
    with socket.create_connection(("127.0.0.1", monitor.ports[0]), timeout=5) as client:
        answer = b""
        with contextlib.suppress(ConnectionError):  # refused in the middle of what it sent
            client.sendall(request)
        with contextlib.suppress(ConnectionError):
            while (piece := client.recv(65536)) and not _is_whole(answer := answer + piece):
                pass
        return answer


def _is_whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    return bool(blank) and length is not None and len(body) >= int(length[1])


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def start_and_wait(root: Path, *settings: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Start a monitor that is expected to end by itself; returns its exit code and everything it printed."""
    argv = [sys.executable, "-m", "monitoring", "--root", str(root)]
    for setting in settings:
        argv += ["--set", setting]
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env, check=False)
    return done.returncode, done.stdout + done.stderr


def test_both_ports_serve_the_same(sample: SampleRoot, monitor: MonitorProcess) -> None:
    for address in ("/api/jobs", "/api/checkpoints", "/"):
        first, second = (requests.get(url + address, timeout=5) for url in (monitor.url, monitor.other_url))
        assert first.content == second.content
        assert first.status_code == 200


def test_a_taken_port_is_one_line_that_names_the_setting(workspace: Workspace) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = start_and_wait(workspace.root, f"monitor.ports=[{free_port()},{port}]")
    assert code == 2
    assert said.count("\n") == 1
    assert f"port {port}" in said
    assert "monitor.ports" in said


def test_a_public_bind_without_a_key_is_refused_in_one_line(workspace: Workspace) -> None:
    code, said = start_and_wait(workspace.root, "monitor.host=0.0.0.0", f"monitor.ports=[{free_port()}]")
    assert code == 2
    assert said.count("\n") == 1
    assert "MONITOR_API_KEY" in said


def test_with_a_key_only_health_is_open(workspace: Workspace) -> None:
    monitor = MonitorProcess(workspace.root, {"MONITOR_API_KEY": "secret-key"}, host="0.0.0.0")
    try:
        for address in ("/", "/api/status", "/metrics", "/ui/app.css", "/api/events"):
            assert requests.get(monitor.url + address, timeout=5).status_code == 401
            assert requests.get(f"{monitor.url}{address}?key=secret-key", timeout=5).status_code == 401
        assert requests.get(f"{monitor.url}/health", timeout=5).status_code == 200
        assert requests.get(f"{monitor.url}/api/status", auth=("me", "secret-key"), timeout=5).status_code == 200
        assert b"secret-key" not in Path(f"/proc/{monitor.process.pid}/cmdline").read_bytes()
    finally:
        _, said = monitor.stop()
    assert "secret-key" not in said


def test_a_root_that_is_none_is_one_line(tmp_path: Path) -> None:
    code, said = start_and_wait(tmp_path)
    assert (code, said.count("\n")) == (2, 1)
    assert "dropforge init" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_while_streams_are_open(workspace: Workspace, number: signal.Signals) -> None:
    monitor = MonitorProcess(workspace.root)
    with requests.get(f"{monitor.url}/api/events", stream=True, timeout=5) as stream:
        next(stream.iter_lines())
        monitor.process.send_signal(number)
        output = monitor.process.communicate(timeout=15)[0]
    assert monitor.process.returncode == 0
    assert "Traceback" not in output


def test_a_supervised_monitor_leaves_ctrl_c_to_its_parent(workspace: Workspace) -> None:
    monitor = MonitorProcess(workspace.root, {PARENT_VARIABLE: str(os.getpid())})
    monitor.process.send_signal(signal.SIGINT)
    assert requests.get(f"{monitor.url}/health", timeout=5).status_code == 200
    assert monitor.stop()[0] == 0


def test_a_stream_tells_events_as_they_are_written_and_resumes_after_the_last(
    sample: SampleRoot, monitor: MonitorProcess
) -> None:
    with requests.get(f"{monitor.url}/api/events", stream=True, timeout=10) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        lines = stream.iter_lines(decode_unicode=True)
        mark = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
        sample.event(kind="queued", message="second")
        assert any("second" in line for line in lines)
    sample.event(kind="queued", message="third")
    headers = {"Last-Event-ID": mark}
    with requests.get(f"{monitor.url}/api/events", stream=True, timeout=10, headers=headers) as stream:
        told = []
        for line in stream.iter_lines(decode_unicode=True):
            told += [json.loads(line.removeprefix("data: "))["message"]] if line.startswith("data: {") else []
            if "third" in told:
                break
    assert told == ["second", "third"]


def test_a_stream_whose_client_left_frees_its_place(
    workspace: Workspace, monitor: MonitorProcess, wait_until: Callable[..., None]
) -> None:
    streams = [requests.get(f"{monitor.url}/api/events", stream=True, timeout=5) for _ in range(MAX_STREAMS)]
    assert requests.get(f"{monitor.url}/api/events", timeout=5).status_code == 503
    for stream in streams:
        stream.close()
    wait_until(lambda: monitor.metric("dropforge_monitor_open_streams") == 0, what="the end of all streams")
    with requests.get(f"{monitor.url}/api/events", stream=True, timeout=5) as again:
        assert again.status_code == 200


def test_health_answers_within_a_second_under_streams_half_open_and_dripping_clients(
    sample: SampleRoot, monitor: MonitorProcess
) -> None:
    address = ("127.0.0.1", monitor.ports[0])
    with contextlib.ExitStack() as clients:

        def client(request: bytes) -> socket.socket:
            made = clients.enter_context(socket.create_connection(address, timeout=10))
            made.sendall(request)
            return made

        host = b"Host: localhost\r\n"
        streaming = [client(b"GET /api/events HTTP/1.1\r\n" + host + b"\r\n") for _ in range(64)]
        for _ in range(300):
            client(b"GET / HTTP/1.1\r\nHost: local")
        dripping = [
            client(b"POST /api/status HTTP/1.1\r\n" + host + b"Content-Length: 5000\r\n\r\n") for _ in range(20)
        ]
        for _ in range(20):  # never reads what it asked for
            client(b"GET /api/jobs HTTP/1.1\r\n" + host + b"\r\n" + b"GET /api/jobs HTTP/1.1\r\n" + host + b"\r\n")
        codes = [int(each.recv(200).split(b" ", 2)[1]) for each in streaming]
        assert (codes.count(200), codes.count(503)) == (MAX_STREAMS, 64 - MAX_STREAMS)
        for _ in range(20):
            for each in dripping:
                with contextlib.suppress(ConnectionError):
                    each.sendall(b"x")
            assert requests.get(f"{monitor.url}/health", timeout=1).status_code == 200
            assert requests.get(f"{monitor.other_url}/api/status", timeout=1).status_code == 200


BODY = b"POST /api/status HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "codes"),
    [
        (BODY + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 1000, {413}),
        (
            BODY + b"Transfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n" + b"10000\r\n",
            {400, 413},
        ),
        (BODY + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400, 405, 501}),
        (BODY + b"Transfer-Encoding: gzip\r\n\r\n", {400, 501}),
        (BODY + b"Content-Length: -1\r\n\r\n", {400}),
        (BODY + b"Content-Length: 100000\r\nContent-Type: application/json\r\n\r\n" + b"[" * 100_000, {405, 413}),
        (BODY + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", {405}),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404, 414, 431}),
        (b"GET /api/jobs?q=" + b"%ff" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 431}),
        (b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", {400, 403}),
        (b"GET /api/jobs HTTP/1.1\r\n\r\n", {400, 403}),
        (b"GET http://evil.example/api/jobs HTTP/1.1\r\nHost: evil.example\r\n\r\n", {400, 403}),
        (b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b: folded\r\n\r\n", {200, 400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
        (b"GET /ui/../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", {404}),
        (b"GET /ui/..%2f..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n", {404}),
        (b"GET /ui/js/\x00main.js HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404}),
        (b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: " + b"9" * 5000 + b"\r\n\r\n", {200}),
    ],
)
def test_malformed_requests_are_refused_and_never_a_failure(
    shared_monitor: MonitorProcess, request_bytes: bytes, codes: set[int]
) -> None:
    answer = raw(shared_monitor, request_bytes)
    assert status_of(answer) in codes
    assert b"Traceback" not in answer
    assert b"root:" not in answer
    assert requests.get(f"{shared_monitor.url}/health", timeout=2).status_code == 200


def test_nothing_is_ever_written_below_the_root(sample: SampleRoot, monitor: MonitorProcess) -> None:
    def contents() -> dict[str, bytes]:
        files = (path for path in sample.ws.root.rglob("*") if path.is_file())
        return {str(p): p.read_bytes() for p in files if "logs" not in p.parts and not p.name.startswith("ledger.db-")}

    before = contents()
    for address in ("/", "/api/status", "/api/jobs", "/api/lineage/560", "/api/metrics", "/api/queue", "/metrics"):
        for method in ("GET", "HEAD", "POST", "DELETE"):
            requests.request(method, monitor.url + address, timeout=5)
    assert contents() == before


def test_ten_thousand_ended_jobs_cost_a_poll_no_more_reads(sample: SampleRoot, monitor: MonitorProcess) -> None:
    sample.many_done(10_000)
    page = "/api/jobs?newest=40"
    assert requests.get(monitor.url + page, timeout=10).json()["total"] > 10_000
    read_before = bytes_read(monitor.process.pid)
    polls = 20
    for _ in range(polls):
        assert requests.get(monitor.url + page, timeout=10).status_code == 200
        assert requests.get(f"{monitor.url}/api/queue", timeout=10).json()["lanes"]["done"] > 10_000
    assert (bytes_read(monitor.process.pid) - read_before) / polls < 20_000
    assert len(requests.get(f"{monitor.url}/api/jobs", timeout=60).json()["jobs"]) > 10_000


def bytes_read(pid: int) -> int:
    """Bytes this process asked the kernel for, sockets included."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])
