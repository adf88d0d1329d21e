"""What the monitor costs and stands: first paint, polls a second, /health under bad clients; over 10,000 ended jobs.

Run: PYTHONPATH=tests .venv/bin/python -m scripts.bench.monitor [SECONDS of overload, default 20]
Prints one JSON document. Not a test: numbers of a busy machine mean little.
"""

import contextlib
import http.client
import json
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import sync_playwright

from monitor_process import MonitorProcess
from sample_root import SampleRoot, write_root

DONE = 10_000
PAINTS = "performance.getEntriesByType('paint').find((entry) => entry.name === 'first-contentful-paint').startTime"


def polls_per_second(port: int, address: str, seconds: float = 3.0) -> dict[str, float]:
    """One client on one connection, with and without the ETag it was given."""
    rates = {}
    connection = http.client.HTTPConnection("localhost", port, timeout=10)
    headers: dict[str, str] = {}
    for name in ("200", "304"):
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.request("GET", address, headers=headers)
            answer = connection.getresponse()
            answer.read()
            count += 1
        rates[name] = round(count / seconds, 1)
        headers = {"If-None-Match": answer.headers.get("ETag", "")}
    connection.close()
    return rates


def paint(url: str, rounds: int = 5) -> dict[str, float]:
    """Milliseconds from navigation to the first paint, to the verdicts and to the curve drawn; median of cold loads."""
    marks: dict[str, list[float]] = {"first_paint": [], "verdicts": [], "curve": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for _ in range(rounds):
            page = browser.new_context().new_page()
            page.goto(url, wait_until="commit")
            for name, selector in (("verdicts", "#verdict-rows tr"), ("curve", "#chart canvas")):
                page.wait_for_selector(selector)
                marks[name].append(page.evaluate("performance.now()"))
            marks["first_paint"].append(page.evaluate(PAINTS))
            page.context.close()
        browser.close()
    return {f"{name}_ms": round(statistics.median(values), 1) for name, values in marks.items()}


def overload(port: int, seconds: float) -> dict[str, float]:
    """/health while 64 streams, 300 half-open and 20 dripping connections stand."""
    with contextlib.ExitStack() as stack:

        def client(request: bytes) -> socket.socket:
            made = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            made.sendall(request)
            return made

        for _ in range(64):
            client(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(300):
            client(b"GET / HTTP/1.1\r\nHost: local")
        dripping = [client(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n") for _ in range(20)]
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            for each in dripping:
                with contextlib.suppress(OSError):
                    each.sendall(b"x")
            start = time.perf_counter()
            connection = http.client.HTTPConnection("localhost", port, timeout=10)
            connection.request("GET", "/health")
            connection.getresponse().read()
            connection.close()
            times.append(1000 * (time.perf_counter() - start))
            time.sleep(0.05)
    times.sort()
    return {
        "p50_ms": round(times[len(times) // 2], 2),
        "p99_ms": round(times[int(len(times) * 0.99)], 2),
        "n": len(times),
    }


def measure(sample: SampleRoot, seconds: float) -> dict[str, Any]:
    monitor = MonitorProcess(sample.ws.root)
    try:
        process = psutil.Process(monitor.process.pid)
        port = monitor.ports[0]
        results: dict[str, Any] = {"paint": paint(monitor.url)}
        for address in ("/api/status", "/api/queue", "/api/jobs?newest=40", "/api/metrics?max_points=600"):
            results[address] = polls_per_second(port, address)
        started = time.perf_counter()
        connection = http.client.HTTPConnection("localhost", port, timeout=60)
        connection.request("GET", "/api/jobs")
        size = len(connection.getresponse().read())
        results["all_jobs"] = {"ms": round(1000 * (time.perf_counter() - started)), "bytes": size}
        results["health_under_bad_clients"] = overload(port, seconds)
        results["rss_mb"] = round(process.memory_info().rss / 1e6, 1)
        return results
    finally:
        monitor.stop()


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    with tempfile.TemporaryDirectory() as folder:
        sample = write_root(Path(folder))
        sample.many_done(DONE)
        sample.losses({step: 0.4 for step in range(613, 100_000)})
        print(json.dumps({"load_1m": psutil.getloadavg()[0], "done": DONE, **measure(sample, seconds)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
