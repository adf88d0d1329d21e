"""Supervised children: restarts, back-off, giving up, and ends that were asked for."""

import signal
import sys
from pathlib import Path

import pytest

from core.daemon.pid_manager import PARENT_VARIABLE
from core.daemon.supervisor import Child, ChildSpec, Restart, State, Supervisor, last_line
from core.errors import StorageError
from daemon_rig import FakeSpawn


def child(spawn: FakeSpawn, **options: object) -> Child:
    spec = ChildSpec("worker", ("worker",), **options)  # type: ignore[arg-type]
    return Child(spec, start=spawn, jitter=lambda: 1.0)


def die(spawn: FakeSpawn, code: int) -> None:
    spawn.processes[-1].code = code


def test_a_child_that_stays_alive_becomes_running() -> None:
    spawn = FakeSpawn()
    it = child(spawn)
    it.start(0.0)
    assert it.state is State.STARTING
    it.tick(1.5)
    assert it.state is State.RUNNING
    assert it.pid == spawn.processes[0].pid


def test_the_delay_doubles_with_each_failure_up_to_the_cap() -> None:
    spawn = FakeSpawn()
    it = child(spawn, backoff_base_s=1.0, backoff_max_s=4.0, fatal_after=None)
    now, delays = 0.0, []
    it.start(now)
    for _ in range(4):
        die(spawn, 1)
        it.tick(now)
        assert it.state is State.BACKOFF
        began = now
        while it.state is State.BACKOFF:
            now += 0.25
            it.tick(now)
        delays.append(now - began)
    assert delays == [1.0, 2.0, 4.0, 4.0]
    assert it.restarts == 4


def test_a_child_that_fails_five_times_in_a_row_is_fatal_and_says_why(tmp_path: Path) -> None:
    spawn = FakeSpawn()
    output = tmp_path / "out"
    output.touch()
    it = child(spawn, output=output)
    it.start(0.0)
    for now in range(0, 500, 100):
        output.write_text(output.read_text() + "Traceback\nModuleNotFoundError: no torch\n")
        die(spawn, 1)
        it.tick(float(now))
        it.tick(float(now) + 99)
    assert it.state is State.FATAL
    assert "ModuleNotFoundError: no torch" in it.reason
    assert len(spawn.processes) == 5


def test_the_end_of_a_child_is_not_explained_by_what_another_one_wrote_before_it(tmp_path: Path) -> None:
    spawn = FakeSpawn()
    output = tmp_path / "out"
    output.write_text("OSError: of yesterday\n")
    it = child(spawn, output=output)
    it.start(0.0)
    output.write_text("OSError: of yesterday\ninfo  all is well\n")
    die(spawn, -signal.SIGKILL)
    it.tick(1.0)
    assert it.reason == "ended by SIGKILL", "what it said last was of something else"
    it.tick(99.0)
    output.write_text("begun anew\n")  # too long a file is put away and begun again
    die(spawn, 1)
    it.tick(100.0)
    assert it.reason == "ended with exit code 1: begun anew"


def test_a_sigkill_from_outside_never_leads_to_fatal() -> None:
    spawn = FakeSpawn()
    it = child(spawn)
    it.start(0.0)
    for now in range(0, 1000, 50):
        die(spawn, -signal.SIGKILL)
        it.tick(float(now))
        it.tick(float(now) + 49)
    assert it.state is State.STARTING
    assert len(spawn.processes) == 21


def test_a_long_healthy_life_forgives_earlier_failures() -> None:
    spawn = FakeSpawn()
    it = child(spawn, fatal_after=2)
    it.start(0.0)
    for now in (100.0, 200.0, 300.0):
        it.tick(now)
        die(spawn, 1)
        it.tick(now + 50)
        assert it.state is State.BACKOFF
        it.tick(now + 90)


def test_an_end_that_was_asked_for_is_not_restarted() -> None:
    spawn = FakeSpawn()
    it = child(spawn)
    it.start(0.0)
    it.stop(1.0)
    assert spawn.processes[0].signals == [signal.SIGTERM]
    die(spawn, -signal.SIGTERM)
    ended = it.tick(2.0)
    assert ended is not None
    assert ended.asked
    assert it.state is State.EXITED
    it.tick(100.0)
    assert len(spawn.processes) == 1


def test_a_child_that_does_not_end_is_killed_after_the_grace() -> None:
    spawn = FakeSpawn()
    it = child(spawn, stop_grace_s=5.0)
    it.start(0.0)
    it.stop(1.0)
    it.tick(5.0)
    assert signal.SIGKILL not in spawn.processes[0].signals
    it.tick(6.5)
    assert signal.SIGKILL in spawn.processes[0].signals


def test_an_errand_that_succeeds_is_not_repeated_and_a_final_code_neither() -> None:
    for code in (0, 5):
        spawn = FakeSpawn()
        it = child(spawn, restart=Restart.ON_FAILURE, final_codes=frozenset({5}))
        it.start(0.0)
        die(spawn, code)
        it.tick(1.0)
        assert it.state is State.EXITED
        assert it.last_exit is not None
        assert it.last_exit.returncode == code


def test_a_start_that_the_disk_refuses_is_tried_again() -> None:
    spawn = FakeSpawn()
    refusals = [StorageError("disk full")]

    def prepare() -> None:
        if refusals:
            raise refusals.pop()

    it = child(spawn, before_start=prepare)
    it.start(0.0)
    assert it.state is State.BACKOFF
    assert "disk full" in it.reason
    it.tick(10.0)
    assert it.state is State.STARTING
    assert len(spawn.processes) == 1


def test_a_transition_that_makes_no_sense_is_refused() -> None:
    it = child(FakeSpawn())
    with pytest.raises(ValueError, match="no way from EXITED to RUNNING"):
        it.transition(State.RUNNING)


def test_the_report_has_the_shape_of_daemon_json() -> None:
    supervisor = Supervisor([ChildSpec("trainer", ("x",))], start=FakeSpawn())
    supervisor["trainer"].start(0.0)
    report = supervisor.report()["trainer"]
    assert (report["state"], report["pid"], report["restarts"]) == ("STARTING", 1000, 0)


def test_a_real_child_gets_our_pid_and_its_output_goes_to_the_file(tmp_path: Path, wait_until: object) -> None:
    code = f"import os; print('parent', os.environ[{PARENT_VARIABLE!r}] == str(os.getppid()))"
    output = tmp_path / "logs" / "out"
    it = Child(ChildSpec("real", (sys.executable, "-c", code), restart=Restart.NEVER, output=output))
    it.start(0.0)
    wait_until(lambda: it.tick(1.0) is not None)  # type: ignore[operator]
    assert last_line(output) == "parent True"


def test_a_program_that_does_not_exist_backs_off_instead_of_raising() -> None:
    it = Child(ChildSpec("none", ("/nowhere/at/all",)))
    it.start(0.0)
    assert it.state is State.BACKOFF
    assert "cannot start" in it.reason
