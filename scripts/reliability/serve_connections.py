"""Event streams, half-open and dripping connections on the inference server at once: /health still answers at once.

    PYTHONPATH=tests python -m scripts.reliability.serve_connections [--seconds 60]

Reads    nothing          Writes  a temporary root, removed at the end
Units    seconds, milliseconds
Errors   exit 5 when the p99 of /health reaches 1 s, a request for it fails, or a good caller is refused meanwhile
Method   64 callers stream answers again and again, 4 more ask for streams and never read them; 300 connections send
         half a header and wait; 20 send a body one byte a second. All of them are opened anew when the server closes
         them. Beside them /health is asked 20 times a second, and /metrics once a second
"""

import argparse
import contextlib
import json
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import requests

from serving_rig import ServerProcess, place, ready_root, running

STREAMS, UNREAD, HALF_OPEN, DRIPPING = 64, 4, 300, 20
SLOWEST_P99_MS = 1000.0
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 200, "stream": True}


def stream_for_ever(server: ServerProcess, stop: threading.Event, seen: "Counter[str]") -> None:
    """A caller that reads its answers to the end, one after the other."""
    with requests.Session() as session:
        while not stop.is_set():
            try:
                with session.post(f"{server.url}/v1/chat/completions", json=BODY, stream=True, timeout=60) as answer:
                    whole = answer.status_code == 200 and list(answer.iter_lines())[-2:-1] == [b"data: [DONE]"]
                seen["streams answered" if whole else f"streams with status {answer.status_code}"] += 1
                if answer.status_code == 503:
                    stop.wait(1)
            except requests.RequestException as error:
                seen[f"streams: {type(error).__name__}"] += 1


def hold(server: ServerProcess, stop: threading.Event, first: bytes, drip: bytes | None) -> None:
    """A connection that sends a beginning, then nothing, or a byte a second; opened anew when it is closed."""
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5) as made:
            made.sendall(first)
            made.settimeout(0.01)
            while not stop.wait(1):
                if drip is not None:
                    made.sendall(drip)
                with contextlib.suppress(TimeoutError):
                    if not made.recv(1):
                        break


def half_open(server: ServerProcess, stop: threading.Event) -> None:
    """All half-open connections, looked after by one thread."""
    made: list[socket.socket] = []
    while not stop.is_set():
        while len(made) < HALF_OPEN:
            one = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" if len(made) % 2 else b"GET /hea")
            one.setblocking(False)
            made.append(one)
        stop.wait(1)
        made = [one for one in made if _open(one)]
    for one in made:
        one.close()


def _open(one: socket.socket) -> bool:
    try:
        if one.recv(4096):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    one.close()
    return False


def attack(server: ServerProcess, stop: threading.Event, seen: "Counter[str]") -> list[threading.Thread]:
    """Start every bad caller and every stream."""
    body = json.dumps(BODY).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    ask = head + b"Content-Length: %d\r\n\r\n" % len(body)
    work: list[tuple[Any, tuple[Any, ...]]] = [(half_open, (server, stop))]
    work += [(stream_for_ever, (server, stop, seen))] * STREAMS
    work += [(hold, (server, stop, head + b"Content-Length: 5000\r\n\r\n{", b" "))] * DRIPPING
    work += [(hold, (server, stop, ask + body, b""))] * UNREAD
    threads = [threading.Thread(target=target, args=args) for target, args in work]
    for thread in threads:
        thread.start()
    return threads


def measure(server: ServerProcess, seconds: float) -> tuple[list[float], int]:
    """Ask /health on new connections. Returns (milliseconds, failures)."""
    took, failed = [], 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            failed += server.get("/health").status_code != 200
            if len(took) % 20 == 0:
                failed += server.get("/metrics").status_code != 200
                began = time.monotonic()
                failed += server.get("/health").status_code != 200
        except requests.RequestException:
            failed += 1
        took.append((time.monotonic() - began) * 1e3)
        time.sleep(0.05)
    return sorted(took), failed


def run(folder: Path, seconds: float) -> dict[str, Any]:
    """Serve, attack, measure. Returns the counts."""
    workspace, (checkpoint,) = ready_root(folder / "root", (0,))
    stop, seen = threading.Event(), Counter[str]()
    with running(workspace) as server:
        server.post("/admin/reload", place(checkpoint, workspace.root / "served")).raise_for_status()
        threads = attack(server, stop, seen)
        time.sleep(2)
        took, failed = measure(server, seconds)
        stop.set()
        server.kill()
        for thread in threads:
            thread.join()
    return {
        "health_asked": len(took),
        "failed": failed,
        "health_p50_ms": round(took[len(took) // 2], 1),
        "health_p99_ms": round(took[int(len(took) * 0.99)], 1),
        "health_max_ms": round(took[-1], 1),
        "callers": {name: count for name, count in seen.items() if not name.endswith("Error")},
    }


def main() -> int:
    """Run it. Returns 0, or 5."""
    parser = argparse.ArgumentParser(description="Many bad connections beside /health.")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        doc = run(Path(folder), options.seconds)
    print(json.dumps(doc))
    good = doc["health_p99_ms"] < SLOWEST_P99_MS and not doc["failed"] and doc["callers"].get("streams answered")
    return 0 if good else 5


if __name__ == "__main__":
    sys.exit(main())
