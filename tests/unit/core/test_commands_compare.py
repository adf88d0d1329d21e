"""`ask --compare`: two answers side by side, each under the id that gave it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from core.cli import main
from core.paths import Workspace

Capture = pytest.CaptureFixture[str]
SAYS = {"7-aaaaaaaaaaaa": "blue [bold]\x1b[2J", "8-bbbbbbbbbbbb": "green " * 40}


class Handler(BaseHTTPRequestHandler):
    """Answers as the checkpoint that is asked for."""

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["model"]
        if name not in SAYS:
            body = json.dumps({"error": {"message": "the model does not exist", "code": "model_not_found"}})
        elif asked.get("stream"):
            chunks = [{"system_fingerprint": name, "choices": [{"delta": {"content": c}}]} for c in SAYS[name]]
            body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        else:
            body = json.dumps({"choices": [{"message": {"content": SAYS[name]}}], "system_fingerprint": name})
        self.send_response(200 if name in SAYS else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def options(workspace: Workspace) -> Iterator[list[str]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield ["--set", f"inference.port={server.server_port}", "--root", str(workspace.root)]
        server.shutdown()
        thread.join()


def test_both_answers_stand_side_by_side_under_their_ids(
    options: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["ask", "colour?", "--compare", *SAYS, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    heading = next(line for line in lines if "7-aaaaaaaaaaaa" in line)
    assert "8-bbbbbbbbbbbb" in heading
    first = next(line for line in lines if "blue" in line)
    assert "green" in first, "one line holds both"
    assert "blue [bold]\\x1b[2J" in first, "no markup, nothing that steers the terminal"
    assert sum(line.count("green") for line in lines) == 40, "long answers are folded, not cut"


def test_with_json_both_documents_come_in_the_order_asked_for(options: list[str], capsys: Capture) -> None:
    assert main(["ask", "colour?", "--compare", *reversed(SAYS), "--json", *options]) == 0
    both = json.loads(capsys.readouterr().out)["compare"]
    assert [answer["system_fingerprint"] for answer in both] == [*reversed(SAYS)]


def test_the_one_that_is_missing_is_the_one_named(options: list[str], capsys: Capture) -> None:
    for names in (["7-aaaaaaaaaaaa", "nowhere"], ["nowhere", "7-aaaaaaaaaaaa"]):
        assert main(["ask", "colour?", "--compare", *names, *options]) == 2
        assert "no checkpoint 'nowhere'" in capsys.readouterr().err


def test_compare_and_checkpoint_exclude_each_other(options: list[str], capsys: Capture) -> None:
    assert main(["ask", "x", "--checkpoint", "7", "--compare", "7", "8", *options]) == 2
    assert "exclude each other" in capsys.readouterr().err
