"""up: ports are asked first, the daemon's end is the end, a wish to stop reaches every child."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core.cli import main
from core.commands.processes import Up, child_specs
from core.daemon.pid_manager import InstanceLock
from core.daemon.supervisor import ChildSpec, Restart, Supervisor
from core.paths import Workspace
from farm import free_port
from sample_root import SampleRoot


@pytest.fixture(autouse=True)
def nothing_really_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that fails to refuse must not run a farm."""

    def refuse(_up: Up) -> int:
        raise AssertionError("processes would have been started")

    monkeypatch.setattr(Up, "run", refuse)


class Played:
    """A child process that a test plays: it runs until it is told how to end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 1
        self.code: int | None = None
        self.signals: list[int] = []
        self.obeys = True

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, sig: int) -> None:
        self.signals.append(sig)
        if self.obeys or sig == signal.SIGKILL:
            self.code = 0 if sig == signal.SIGTERM else -sig


class Stage:
    """`up` with played children."""

    def __init__(self) -> None:
        self.played: dict[str, Played] = {}
        self.starts: list[str] = []
        specs = [
            ChildSpec(name, (name,), Restart.ON_FAILURE if name == "daemon" else Restart.ALWAYS)
            for name in ("serve", "monitor", "daemon")
        ]
        self.supervisor = Supervisor(specs, start=self.start)
        self.up = Up(self.supervisor)
        for child in self.supervisor:
            child.start(0.0)

    def start(self, spec: ChildSpec) -> Played:
        self.starts.append(spec.name)
        self.played[spec.name] = Played(spec.name)
        return self.played[spec.name]


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_the_daemons_end_ends_everything_with_its_exit_code(code: int) -> None:
    stage = Stage()
    assert stage.up.tick(1.0) is False
    stage.played["daemon"].code = code
    assert stage.up.tick(2.0) is False, "the others are asked to end first"
    assert stage.played["serve"].signals == [signal.SIGTERM]
    assert stage.up.tick(3.0) is True
    assert stage.up.code == code


def test_a_daemon_that_crashed_is_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    stage.played["daemon"].code = -signal.SIGSEGV
    stage.up.tick(1.0)
    stage.up.tick(100.0)
    assert stage.starts.count("daemon") == 2
    assert "SIGSEGV" in capsys.readouterr().err


def test_a_server_that_ends_is_started_again_and_again() -> None:
    stage = Stage()
    for second in range(1, 2000, 100):
        stage.played["serve"].code = 1
        stage.up.tick(float(second))
        stage.up.tick(second + 50.0)
    assert stage.starts.count("serve") > 3


def test_a_wish_to_stop_reaches_every_child_and_a_second_one_kills() -> None:
    stage = Stage()
    stage.played["daemon"].obeys = False
    stage.up.on_signal(signal.SIGINT, None)
    assert stage.up.tick(1.0) is False
    assert stage.played["daemon"].signals == [signal.SIGTERM]
    assert stage.up.tick(2.0) is False, "the daemon is still committing"
    assert stage.played["serve"].signals == [], "the server answers until the daemon has ended"
    stage.up.on_signal(signal.SIGINT, None)
    stage.up.tick(3.0)
    assert stage.played["daemon"].signals[-1] == signal.SIGKILL
    while not stage.up.tick(4.0):
        assert stage.played["monitor"].signals
    assert stage.up.code == 0


def test_after_a_clean_end_of_the_daemon_the_others_are_asked_to_end() -> None:
    stage = Stage()
    stage.up.on_signal(signal.SIGTERM, None)
    while not stage.up.tick(1.0):
        pass
    assert [p.signals for p in stage.played.values()] == [[signal.SIGTERM]] * 3


class Health(BaseHTTPRequestHandler):
    """A process that starts: 503 until it is ready."""

    status = 503

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


def test_an_address_is_told_when_it_answers_and_only_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        ready = f"http://127.0.0.1:{server.server_port}/ready"
        up = Up(Stage().supervisor, {"answers  here": ready, "monitor  there": f"http://127.0.0.1:{free_port()}/"})
        up.tick(1.0)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(Health, "status", 200)
        up.tick(2.0)
        up.tick(3.0)
        assert capsys.readouterr().err == "answers  here\n"
        server.shutdown()


def test_nothing_is_said_to_answer_before_it_is_started(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Up, "run", lambda up: said.append(capsys.readouterr().err) or 0)
    ports = ["--set", f"inference.port={free_port()}", "--set", f"monitor.ports=[{free_port()}]"]
    assert main(["up", *ports, "--root", str(workspace.root)]) == 0
    assert said == [f"starting; drop files into {workspace.inbox}; Ctrl-C ends it\n"]


def test_a_taken_port_is_one_line_that_names_the_setting(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.commands.processes._PORT_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--set", f"inference.port={free_port()}", "--set", f"monitor.ports=[{port}]"]
        assert main(["up", *options, "--root", str(workspace.root)]) == 2
    first, fix = capsys.readouterr().err.splitlines()
    assert first == f"error: monitor.ports: port {port} on 127.0.0.1 is taken by another process"
    assert "--set monitor.ports" in fix


def test_all_taken_ports_are_named_at_once(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.commands.processes._PORT_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [taken.getsockname()[1] for taken in (one, two)]
        options = ["--set", f"inference.port={ports[0]}", "--set", f"monitor.ports=[{ports[1]}]"]
        assert main(["up", *options, "--root", str(workspace.root)]) == 2
        assert main(["doctor", *options, "--root", str(workspace.root)]) != 0
    said = capsys.readouterr()
    for text in (said.err, said.out):
        assert all(f"port {port} on 127.0.0.1 is taken by another process" in text for port in ports)
        assert "--set inference.port=... --set monitor.ports=..." in text


def test_a_port_held_by_our_own_daemon_is_exit_three(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.commands.processes._PORT_WAIT_S", 0.0)
    held = InstanceLock.acquire(workspace.lock_file)
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert main(["up", "--set", f"inference.port={port}", "--root", str(workspace.root)]) == 3
    finally:
        held.release()
    assert f"pid {os.getpid()}" in capsys.readouterr().err


def test_a_second_up_on_other_ports_is_refused_before_it_starts_anything(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.commands.processes._PORT_WAIT_S", 0.0)
    held = InstanceLock.acquire(workspace.lock_file)
    try:
        options = ["--set", f"inference.port={free_port()}", "--set", f"monitor.ports=[{free_port()}]"]
        assert main(["up", *options, "--root", str(workspace.root)]) == 3
    finally:
        held.release()
    said = capsys.readouterr().err
    assert f"pid {os.getpid()}" in said and "starting" not in said


def test_the_children_are_told_the_root_and_take_the_overrides_from_the_environment(workspace: Workspace) -> None:
    specs = {spec.name: spec for spec in child_specs(workspace, {"DROPFORGE_TRAINER__SEED": "7"}, ["--exit-when-idle"])}
    assert set(specs) == {"daemon", "serve", "monitor"}
    for spec in specs.values():
        assert spec.argv[3:5] == ("--root", str(workspace.root))
        assert spec.env["DROPFORGE_TRAINER__SEED"] == "7"
    assert specs["daemon"].argv[-1] == "--exit-when-idle"


def test_a_command_run_alone_becomes_the_process_of_its_room(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[list[str], str | None]] = []
    monkeypatch.setattr("os.execve", lambda _path, argv, env: became.append((argv, env.get("DROPFORGE_TRAINER__SEED"))))
    for verb, module in (("daemon", "core.daemon"), ("serve", "inference"), ("monitor", "monitoring")):
        assert main([verb, "--root", str(workspace.root), "--set", "trainer.seed=7"]) == 0
        assert became.pop() == ([sys.executable, "-m", module, "--root", str(workspace.root)], "7")


def test_status_answers_within_its_promise_on_a_full_root(
    workspace: Workspace, wait_until: Callable[..., None]
) -> None:
    """Not a timing test: it checks what makes the promise true, that status opens no job folder."""
    SampleRoot(workspace).many_done(50)
    trace = Path(workspace.root) / "opened"
    code = (
        "import sys\n"
        f"opened = open({str(trace)!r}, 'w')\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.write(f'{args[0]}\\n'))\n"
        f"from core.cli import main\nmain(['status', '--root', {str(workspace.root)!r}])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert "daemon.json" in trace.read_text()
    assert "verdict.json" not in trace.read_text()


def hosts(workspace: Workspace, local_role: str) -> None:
    """A farm of two machines, of which this one is `here`."""
    other = "trainer" if local_role == "inference" else "inference"
    doc = {
        "hosts": {
            "here": {"name": "here", "host": "127.0.0.1", "role": local_role},
            "there": {
                "name": "there",
                "host": "gpu2.example",
                "role": other,
                "services": {"inference": {"port": 9999}},
            },
        },
        "local_host": "here",
    }
    workspace.hosts_file.parent.mkdir(exist_ok=True)
    workspace.hosts_file.write_text(json.dumps(doc))


def test_a_host_that_only_trains_starts_no_server_and_names_the_one_that_serves(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts(workspace, "trainer")
    started: list[str] = []
    monkeypatch.setattr(Up, "run", lambda up: started.extend(c.spec.name for c in up.supervisor) or 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = ["--set", f"inference.port={taken.getsockname()[1]}", "--set", f"monitor.ports=[{free_port()}]"]
        assert main(["up", *options, "--root", str(workspace.root)]) == 0, "the port is the other host's business"
    assert started == ["monitor", "daemon"]
    assert "http://gpu2.example:9999/v1" in capsys.readouterr().err


def test_a_host_that_only_serves_is_told_to_serve(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    hosts(workspace, "inference")
    assert main(["up", "--root", str(workspace.root)]) == 2
    assert "fix: dropforge serve" in capsys.readouterr().err


def test_a_time_that_begins_with_a_dash_reaches_the_report_as_one_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[str, ...]] = []
    monkeypatch.setattr("core.commands.report.become", lambda *words: became.append(words))
    (tmp_path / "config.json").write_text("{}")
    main(["report", "--root", str(tmp_path), "--since", "-7d"])
    assert became == [("monitoring.reports", "--since=-7d")]
