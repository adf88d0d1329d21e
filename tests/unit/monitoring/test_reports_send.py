"""Reports reach a receiver on this machine, and trouble is told without telling the secret address."""

import json
import sys
import threading
import typing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from core.errors import MissingToolError
from monitoring.reports.send import UnsentError, send


@pytest.fixture
def receiver():
    """A web server that keeps what it is sent; `answers` holds the codes it gives, 200 when it is empty."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.got.append((self.path, self.headers["Content-Type"], body))
            self.send_response(server.answers.pop(0) if server.answers else 200)
            self.send_header("Content-Length", "0")
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()

        def log_message(self, *args):
            """Silence."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/secret-key"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_webhook_gets_title_and_text_as_json(receiver):
    assert send("Title ①", "Text", webhook=receiver.url, apprise_urls=[]) == 1
    ((path, kind, body),) = receiver.got
    assert path == "/secret-key"
    assert kind == "application/json"
    assert json.loads(body) == {"title": "Title ①", "text": "Text"}


def test_a_webhook_in_trouble_is_asked_again(receiver):
    receiver.answers = [503, 500]
    assert send("t", "x", webhook=receiver.url, apprise_urls=[]) == 1
    assert len(receiver.got) == 3


@pytest.mark.parametrize(("codes", "asked"), [([404], 1), ([302], 1), ([503, 503, 503], 3)])
def test_a_webhook_that_refuses_is_an_error_without_its_address(receiver, codes, asked):
    receiver.answers = list(codes)
    with pytest.raises(UnsentError) as unsent:
        send("t", "x", webhook=receiver.url, apprise_urls=[])
    assert len(receiver.got) == asked
    assert "secret-key" not in str(unsent.value)


def test_a_webhook_that_is_not_there_is_an_error_without_its_address():
    with pytest.raises(UnsentError) as unsent:
        send("t", "x", webhook="http://127.0.0.1:9/secret-key", apprise_urls=[])
    assert "secret-key" not in str(unsent.value)


def test_without_receivers_nothing_is_sent():
    assert send("t", "x", webhook=None, apprise_urls=[]) == 0


class FakeApprise:
    """What we use of apprise's interface; the real one leaves a thread behind: docs/log.md."""

    sent: typing.ClassVar[list[tuple[str, str]]] = []

    class Apprise:
        def __init__(self):
            self.urls = []

        def add(self, url):
            self.urls += [url] if url.startswith("json://") else []
            return url.startswith("json://")

        def notify(self, title, body):
            FakeApprise.sent += [(url, title) for url in self.urls]
            return "broken" not in self.urls[0]


def test_apprise_urls_get_the_report_through_apprise(monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", FakeApprise)
    assert send("t", "x", webhook=None, apprise_urls=["json://a", "json://b"]) == 2
    assert ("json://b", "t") in FakeApprise.sent


@pytest.mark.parametrize("urls", [["nonsense://secret-key"], ["json://broken/secret-key"]])
def test_an_apprise_url_that_does_not_work_is_an_error_without_it(monkeypatch, urls):
    monkeypatch.setitem(sys.modules, "apprise", FakeApprise)
    with pytest.raises(UnsentError) as unsent:
        send("t", "x", webhook=None, apprise_urls=urls)
    assert "secret-key" not in str(unsent.value)


def test_the_webhook_is_served_even_when_apprise_is_missing(monkeypatch, receiver):
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(MissingToolError) as missing:
        send("t", "x", webhook=receiver.url, apprise_urls=["json://a"])
    assert "dropforge[notify]" in missing.value.fix
    assert len(receiver.got) == 1
