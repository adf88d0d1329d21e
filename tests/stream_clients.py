"""Many streamed requests from one thread, for benchmarks of servers: the clock runs here, parsing waits until the end.

    echo '{"port": 8765, "path": "/v1/completions", "bodies": [{...}, ...]}' | PYTHONPATH=tests python -m stream_clients

Reads    stdin: the request      Writes  stdout: {"clients": [{"first_ms", "end_ms", "times_ms", "tokens", "text"}]}
Units    milliseconds since all requests were sent together
Method   a process of its own, so that its work never holds the lock of a server or of a peer; one thread, because a
         thread a client would measure their switching. A server is judged by its bytes, whichever server it is
"""

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_CHUNK = 1 << 16


@dataclass(slots=True)
class _Stream:
    socket: socket.socket
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)


def _open(port: int, path: str, body: Mapping[str, Any]) -> _Stream:
    data = json.dumps({**body, "stream": True}).encode()
    made = socket.create_connection(("127.0.0.1", port), timeout=600)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    made.sendall(head.encode() + data)
    return _Stream(made)


def _receive(streams: Sequence[_Stream], began: float) -> None:
    """Collect what arrives until every server side has closed."""
    chooser = selectors.DefaultSelector()
    for stream in streams:
        chooser.register(stream.socket, selectors.EVENT_READ, stream)
    while chooser.get_map():
        for key, _ in chooser.select():
            data = key.data.socket.recv(_CHUNK)
            if data:
                key.data.arrivals.append(((time.perf_counter() - began) * 1e3, data))
            else:
                chooser.unregister(key.data.socket)
                key.data.socket.close()


def _delta(event: Mapping[str, Any]) -> str:
    choice = event["choices"][0] if event.get("choices") else {}
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


def _parsed(stream: _Stream) -> dict[str, Any]:
    """The events of one answer, each at the time its last byte came. Chunked transfer marks are lines of their own."""
    times, text, tokens, rest = [], "", 0, b""
    for at_ms, data in stream.arrivals:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("error"):
                raise RuntimeError(f"the server answered {event['error']}")
            if delta := _delta(event):
                times.append(at_ms)
                text += delta
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if not times:
        raise RuntimeError(f"no text in {b''.join(data for _, data in stream.arrivals)[:500]!r}")
    return {
        "first_ms": times[0],
        "end_ms": stream.arrivals[-1][0],
        "times_ms": times,
        "tokens": tokens or len(times),  # a peer that does not count sends one token an event
        "text": text,
    }


def ask(port: int, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run one batch of requests in a client process. Raises RuntimeError when it failed."""
    asked = json.dumps({"port": port, "path": path, "bodies": list(bodies)})
    argv = [sys.executable, "-m", "stream_clients"]
    done = subprocess.run(argv, input=asked, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    clients: list[dict[str, Any]] = json.loads(done.stdout)["clients"]
    return clients


def main() -> int:
    """Send, receive, then parse."""
    asked = json.load(sys.stdin)
    began = time.perf_counter()
    streams = [_open(asked["port"], asked["path"], body) for body in asked["bodies"]]
    _receive(streams, began)
    json.dump({"clients": [_parsed(stream) for stream in streams]}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
