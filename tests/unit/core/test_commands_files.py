"""submit, check, ask: files handed over whole, checked where they lie, and answers that name their checkpoint."""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from core.cli import main
from core.commands import files
from core.drop import Dropped, drop
from core.errors import StorageError
from core.job_queue import new_job_id, new_verdict
from core.paths import Workspace
from sample_root import working_day

Capture = pytest.CaptureFixture[str]
GOOD = '{"text": "a row"}\n'


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD)
    return path


def test_submit_writes_what_it_was_told_into_the_sidecar(workspace: Workspace, rows: Path) -> None:
    rows.with_name("rows.jsonl.meta.json").write_text('{"columns": {"text": "body"}, "spec": "other"}')
    options = ["--spec", "completion_v1", "--priority", "high", "--generator", "syllo_local@1.2"]
    assert main(["submit", str(rows), *options, "--root", str(workspace.root)]) == 0
    sidecar = json.loads((workspace.inbox / "high" / "rows.jsonl.meta.json").read_text())
    assert sidecar.pop("sha256")
    assert sidecar == {
        "columns": {"text": "body"},
        "spec": "completion_v1",
        "priority": "high",
        "generator_id": "syllo_local",
        "generator_version": "1.2",
    }


@pytest.mark.parametrize("command", ["submit", "check"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.jsonl", "no such file"),
        ("rows.doc", "suffix not known"),
        (".hidden.jsonl", "a hidden name"),
        ("verdict.json", "a file of our own"),
        ("x.jsonl.rejected.jsonl", "our own name for rows set aside"),
        ("x.jsonl.meta.json", "this is a sidecar"),
        ("folder.jsonl", "a folder, not a regular file"),
    ],
)
def test_what_the_inbox_would_not_take_is_refused_with_the_reason(
    workspace: Workspace, tmp_path: Path, capsys: Capture, command: str, name: str, words: str
) -> None:
    if name == "folder.jsonl":
        (tmp_path / name).mkdir()
    elif name != "absent.jsonl":
        (tmp_path / name).write_text(GOOD)
    assert main([command, str(tmp_path / name), "--root", str(workspace.root)]) == 2
    shown = capsys.readouterr()
    assert re.search(words, shown.err if command == "submit" else shown.out)
    assert [p for p in workspace.inbox.iterdir() if p.is_file()] == []


def test_one_file_that_cannot_be_dropped_keeps_all_others_from_being_dropped(
    workspace: Workspace, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    (long := tmp_path / ("n" * 249 + ".jsonl")).write_text(GOOD)
    (broken := tmp_path / "broken.jsonl").write_text(GOOD)
    (tmp_path / "broken.jsonl.meta.json").write_text("{")
    assert main(["submit", str(rows), str(long), str(broken), str(rows), "--root", str(workspace.root)]) == 2
    said = capsys.readouterr().err
    assert "255 bytes" in said and "shorten it to 238 bytes" in said
    assert "nothing was dropped" in said and "broken.jsonl" in said
    assert [p for p in workspace.inbox.iterdir() if p.is_file()] == []


def test_the_longest_name_that_is_taken_can_be_dropped_twice(workspace: Workspace, tmp_path: Path) -> None:
    (long := tmp_path / ("n" * 232 + ".jsonl")).write_text(GOOD)
    assert main(["submit", str(long), str(long), "--root", str(workspace.root)]) == 0
    assert len(list(workspace.inbox.glob("*.jsonl"))) == 2


def test_a_disk_that_refuses_half_way_leaves_no_doubt_what_was_dropped(
    workspace: Workspace, rows: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (second := tmp_path / "second.jsonl").write_text(GOOD)

    def drop_one(workspace: Workspace, source: Path, **more: Any) -> Dropped:
        if source == second:
            raise StorageError("no space left", where=str(workspace.inbox))
        return drop(workspace, source, **more)

    monkeypatch.setattr(files, "drop", drop_one)
    assert main(["submit", str(rows), str(second), "--root", str(workspace.root)]) == 4
    said = capsys.readouterr().err
    assert "rows.jsonl: in the inbox" in said and "no space left" in said


def test_check_of_a_folders_files_tells_of_those_the_inbox_would_not_take_and_goes_on(
    workspace: Workspace, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    (notes := tmp_path / "notes.md").write_text("# notes\n")
    argv = ["check", "--json", str(notes), str(tmp_path / "absent.jsonl"), str(rows), "--root", str(workspace.root)]
    assert main(argv) == 2
    found = json.loads(capsys.readouterr().out)["files"]
    assert [(v["file"], v["state"], v["code"]) for v in found] == [
        ("notes.md", "rejected", "unsupported"),
        ("absent.jsonl", "rejected", "not_found"),
        ("rows.jsonl", None, "ok"),
    ]
    assert found[0]["fix"] == "rename it"
    (bad := tmp_path / "bad.jsonl").write_text("{\n")
    assert main(["check", str(notes), str(bad), "--root", str(workspace.root)]) == 5, "what the gates refuse is worse"
    assert "notes.md: rejected (unsupported)" in capsys.readouterr().out
    assert main(["check", "--stats", "--json", str(notes), str(rows)]) == 2
    shown = capsys.readouterr()
    assert [entry["file"] for entry in json.loads(shown.out)["files"]] == ["rows.jsonl"]
    assert "notes.md" in shown.err


def test_sidecars_named_with_their_files_are_read_with_them(workspace: Workspace, rows: Path, capsys: Capture) -> None:
    sidecar = rows.with_name("rows.jsonl.meta.json")
    sidecar.write_text('{"generator_id": "mine"}')
    assert main(["check", "--json", str(sidecar), str(rows), "--root", str(workspace.root)]) == 0
    assert [entry["file"] for entry in json.loads(capsys.readouterr().out)["files"]] == ["rows.jsonl"]
    assert main(["submit", str(rows), str(sidecar), "--root", str(workspace.root)]) == 0
    dropped = {p.name: p for p in workspace.inbox.iterdir() if p.is_file()}
    assert sorted(dropped) == ["rows.jsonl", "rows.jsonl.meta.json"]
    assert json.loads(dropped["rows.jsonl.meta.json"].read_text())["generator_id"] == "mine"


def test_a_sidecar_that_the_gates_would_refuse_is_not_submitted(workspace: Workspace, rows: Path) -> None:
    os.mkfifo(rows.with_name("rows.jsonl.meta.json"))
    assert main(["submit", str(rows), "--root", str(workspace.root)]) == 2
    assert [p for p in workspace.inbox.iterdir() if p.is_file()] == []


def play_daemon(workspace: Workspace, state: str) -> Callable[[], bool]:
    """Returns a step that claims what lies in the inbox and ends it in `state`, as the daemon would."""

    def step() -> bool:
        data = [p for p in workspace.inbox.glob("*.jsonl")]
        for path in data:
            job_id = new_job_id(None)
            parent = workspace.rejected_dir if state == "rejected" else workspace.lane(state)
            sha256 = json.loads(path.with_name(path.name + ".meta.json").read_text())["sha256"]
            claim = workspace.claim_dir / job_id
            claim.mkdir()
            path.rename(claim / path.name)
            verdict = new_verdict(job_id=job_id, file=path.name, sha256=sha256, state=state, message="so it is")
            (claim / "verdict.json").write_text(json.dumps(verdict))
            claim.rename(parent / job_id)
        return bool(data)

    return step


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("rejected", 5), ("failed", 5)])
def test_submit_wait_returns_with_the_verdict(
    workspace: Workspace, rows: Path, wait_until: Callable[..., None], capsys: Capture, state: str, code: int
) -> None:
    codes: list[int] = []
    argv = ["submit", str(rows), "--wait", "--json", "--root", str(workspace.root)]
    waiting = threading.Thread(target=lambda: codes.append(main(argv)))
    waiting.start()
    wait_until(lambda: list(workspace.inbox.glob("*.jsonl")), what="the drop")
    claimed = workspace.claim_dir / new_job_id(None)  # somebody else's drop, claimed and not yet read
    claimed.mkdir()
    (claimed / "verdict.json").write_text(json.dumps(new_verdict(job_id=claimed.name)))
    wait_until(play_daemon(workspace, state), what="the drop")
    waiting.join(20)
    assert codes == [code]
    shown = capsys.readouterr()
    (entry,) = json.loads(shown.out)["files"]
    assert len(entry["job_id"]) == 29
    assert shown.err == f"no daemon runs in this root: waiting until one does (dropforge up)\nrows.jsonl: {state}\n"


def test_check_moves_and_writes_nothing(workspace: Workspace, rows: Path, capsys: Capture) -> None:
    before = sorted(workspace.root.rglob("*"))
    assert main(["check", str(rows), "--root", str(workspace.root)]) == 0
    assert sorted(workspace.root.rglob("*")) == before
    assert rows.read_text() == GOOD
    assert "rows.jsonl: accepted (ok), 1 rows" in capsys.readouterr().out


def test_check_of_a_bad_file_among_good_ones_exits_five_and_names_the_line(
    workspace: Workspace, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(GOOD + '{"text": \n')
    assert main(["check", str(rows), str(bad), "--root", str(workspace.root)]) == 5
    shown = capsys.readouterr().out
    assert "line 2" in shown
    assert "fix:" in shown


def test_show_mask_brackets_what_is_trained(tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "root"
    assert main(["init", str(root)]) == 0
    chat = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "reply"}]
    chat.write_text(json.dumps({"messages": turns}) + "\n")
    assert main(["check", str(chat), "--show-mask", "1", "--root", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "[reply<|im_end|>]" in shown
    assert "[ask" not in shown


def test_stats_are_told_without_a_root_and_without_reading_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p"] * 9, "a\x1b[31m": ["c"] * 9}), "x.parquet")
    data = bytearray(Path("x.parquet").read_bytes())
    data[4:40] = b"\xff" * 36  # rows that cannot be read: the footer alone is asked
    Path("x.parquet").write_bytes(bytes(data))
    assert main(["check", "--stats", "--json", "x.parquet"]) == 0
    [entry] = json.loads(capsys.readouterr().out)["files"]
    assert (entry["file"], entry["rows"], entry["bytes"]) == ("x.parquet", 9, len(data))
    assert entry["columns"] == ["prompt", "a\x1b[31m"]
    assert main(["check", "--stats", "x.parquet"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_stats_of_a_damaged_file_exit_five_with_one_line(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and nothing else PAR1")
    assert main(["check", "--stats", str(path)]) == 5
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_report_of_one_file_is_written_where_it_is_asked_for(
    workspace: Workspace, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "out.html"
    root = ["--root", str(workspace.root)]
    assert main(["check", str(rows), "--level", "deep", "--report", str(target), *root]) == 0
    assert "rows.jsonl" in target.read_text() and f"report: {target}" in capsys.readouterr().out
    assert main(["check", str(rows), str(rows), "--report", str(target), *root]) == 2
    assert main(["check", str(rows), "--report", str(tmp_path / "no" / "out.html"), *root]) == 4
    rows.write_text('{"text": \n')
    assert main(["check", str(rows), "--report", str(target), *root]) == 5
    assert "line 1" in target.read_text()


class Server(ThreadingHTTPServer):
    """An inference server that answers one sentence and remembers what it was asked."""

    asked: dict[str, Any]
    key: str | None
    has: tuple[str, ...] = ("dropforge", "7-abc")


class Handler(BaseHTTPRequestHandler):
    server: Server
    answering = "7-abc"

    def do_POST(self) -> None:
        self.server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.key = self.headers.get("Authorization")
        known = self.server.asked["model"] in self.server.has
        if not known:
            body = json.dumps({"error": {"message": "the model does not exist", "code": "model_not_found"}})
        elif self.server.asked.get("stream"):
            body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in self.chunks()) + "data: [DONE]\n\n"
        else:
            body = json.dumps({"choices": [{"message": {"content": "blue"}}], "system_fingerprint": self.answering})
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def chunks(self) -> Iterator[dict[str, Any]]:
        for text in ("bl", "ue\x1b[2J"):
            yield {"system_fingerprint": self.answering, "choices": [{"delta": {"content": text}}]}

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_ask_streams_the_answer_and_names_the_checkpoint_on_stderr(
    workspace: Workspace, server: Server, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERENCE_API_KEY", "secret")
    options = ["--set", f"inference.port={server.server_port}", "--root", str(workspace.root)]
    assert main(["ask", "what colour?", "--checkpoint", "7-abc", *options]) == 0
    shown = capsys.readouterr()
    assert shown.out == "blue\\x1b[2J\n", "what could steer the terminal is shown, not obeyed"
    stranger = f"note: another root's server answers at http://127.0.0.1:{server.server_port}: "
    assert shown.err == stranger + "this root has never run (dropforge up)\n[7-abc]\n"
    assert server.asked["model"] == "7-abc"
    assert server.key == "Bearer secret"


def test_ask_with_json_prints_the_servers_own_document(workspace: Workspace, server: Server, capsys: Capture) -> None:
    options = ["--set", f"inference.port={server.server_port}", "--root", str(workspace.root)]
    assert main(["ask", "what colour?", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["system_fingerprint"] == "7-abc"
    assert server.asked["model"] == "dropforge"


def test_ask_says_whether_the_checkpoint_that_answers_is_this_roots(
    workspace: Workspace, server: Server, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = working_day(workspace)
    workspace.status_file("deployment.json").unlink()
    options = ["ask", "hi", "--set", f"inference.port={server.server_port}", "--root", str(workspace.root)]
    _base, removed, newest = sample.catalogue.committed()
    assert main(options) == 0
    assert "checkpoint 7-abc is none of this root's" in capsys.readouterr().err
    assert main([*options, "--json"]) == 0
    shown = capsys.readouterr()
    assert "is none of this root's" in shown.err and json.loads(shown.out)["system_fingerprint"] == "7-abc"
    sample.catalogue.remove(removed)
    sample.catalogue.undo_after(removed.id)
    for ours in (removed.id, newest.id):
        monkeypatch.setattr(Handler, "answering", ours)
        assert main(options) == 0
        assert capsys.readouterr().err == f"[{ours}]\n", "removed by retention, or taken back, and still served"


def test_ask_without_a_server_says_so(workspace: Workspace, server: Server, capsys: Capture) -> None:
    port = server.server_port
    server.shutdown()
    server.server_close()
    assert main(["ask", "hi", "--set", f"inference.port={port}", "--root", str(workspace.root)]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_ask_finds_the_server_that_the_running_daemon_hears(workspace: Workspace, server: Server) -> None:
    heard = {"ok": True, "url": f"http://127.0.0.1:{server.server_port}", "serving": "7-abcdefabcdef"}
    workspace.status_file("deployment.json").write_text(json.dumps(heard))
    assert main(["ask", "what colour?", "--json", "--root", str(workspace.root)]) == 0
    assert server.asked["messages"][0]["content"] == "what colour?"


def test_ask_says_what_became_of_a_checkpoint_that_the_server_does_not_have(
    workspace: Workspace, server: Server, capsys: Capture
) -> None:
    sample = working_day(workspace)
    _base, removed, newest = sample.catalogue.committed()
    sample.catalogue.remove(removed)
    workspace.status_file("deployment.json").unlink()

    def said(checkpoint: str, *, code: int) -> str:
        options = ["--set", f"inference.port={server.server_port}", "--root", str(workspace.root)]
        assert main(["ask", "hi", "--checkpoint", checkpoint, *options]) == code
        return capsys.readouterr().err

    assert "its weights were removed" in said(removed.id, code=2)
    assert f"dropforge promote {newest.id}" in said("560", code=2)
    assert "no checkpoint 'nonsense'" in said("nonsense", code=2)
    server.has = (removed.id, newest.id)
    assert "[7-abc]" in said(removed.id, code=0), "the server may keep what training has removed"
    said("560", code=0)
    assert server.asked["model"] == newest.id, "a step or a short id is enough here, as in every other command"
