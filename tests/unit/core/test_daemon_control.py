"""inbox/control/: what acts, in which order, what is acknowledged, and what does no harm."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from core.control import ControlFile, write_command, write_request
from core.daemon.control_files import Control, Progress, Settled
from core.daemon.orders import OrderBook
from core.daemon.training_view import TrainingView
from core.errors import NotFoundError
from core.paths import Workspace, schema_file
from core.status import write_status
from daemon_rig import commit, make_context


class Rig:
    def __init__(self, workspace: Workspace, clock: Any) -> None:
        self.workspace, self.clock = workspace, clock
        self.context = make_context(workspace)
        self.asked: list[ControlFile] = []
        self.orders = OrderBook(workspace, TrainingView(workspace))
        self.control = Control(self.context, self.orders, {"cancel": self._cancel})

    def _cancel(self, request: ControlFile) -> Progress:
        self.asked.append(request)
        if request.arguments["id"] == "none":
            raise NotFoundError("no job 'none'", fix="dropforge jobs lists them")
        return Settled()

    def tick(self, seconds: float = 0.1) -> None:
        self.clock.advance(seconds)
        self.control.tick(self.clock())
        self.orders.tick()

    def touch(self, name: str, content: bytes = b"") -> Path:
        path = self.workspace.control_dir / name
        path.write_bytes(content)
        return path

    def said(self) -> dict[str, Any]:
        return json.loads(self.workspace.status_file("control.json").read_text())

    def ordered(self) -> dict[str, Any]:
        return json.loads(self.workspace.status_file("orders.json").read_text())

    def obey(self) -> None:
        """The trainer carries out what it was told."""
        seq = self.ordered()["seq"]
        doc = {"ack": {"seq": seq, "step": 4, "checkpoint": "4-aaaaaaaaaaaa"}}
        write_status(self.workspace.status_file("training_status.json"), doc)
        self.tick()
        self.tick()

    def activate(self) -> str:
        job_id = "20260101T000000000000Z-abcdef"
        (self.workspace.lane("active") / job_id).mkdir()
        return job_id


@pytest.fixture
def rig(workspace: Workspace, clock: object) -> Iterator[Rig]:
    made = Rig(workspace, clock)
    yield made
    made.context.wakeup.close()


@pytest.mark.parametrize("name", ["pause", "PAUSE", "Pause"])
def test_touching_pause_pauses_and_deleting_it_goes_on(rig: Rig, name: str) -> None:
    path = rig.touch(name)
    rig.tick()
    assert (rig.ordered()["command"], rig.ordered()["paused"]) == ("pause", True)
    assert rig.said()["effective_at"] is None
    rig.obey()
    assert (rig.said()["command"], rig.said()["step"]) == ("pause", 4)
    assert rig.said()["effective_at"] is not None
    event = json.loads(rig.workspace.status_file("events.jsonl").read_text().splitlines()[-1])
    assert (event["kind"], event["message"]) == ("control_done", "pause: effective at step 4")
    path.unlink()
    rig.tick()
    rig.tick()
    assert (rig.ordered()["command"], rig.ordered()["paused"]) == ("run", False)


def test_an_inbox_that_is_gone_for_a_while_does_not_lift_a_pause(rig: Rig) -> None:
    rig.touch("pause")
    rig.tick()
    rig.workspace.inbox.rename(rig.workspace.root / "aside")
    rig.tick()
    assert rig.orders.paused
    (rig.workspace.root / "aside").rename(rig.workspace.inbox)
    rig.tick()
    assert rig.orders.paused


def test_resume_deletes_pause_and_itself(rig: Rig) -> None:
    rig.touch("pause")
    rig.tick()
    rig.obey()
    rig.touch("resume")
    rig.tick()
    assert os.listdir(rig.workspace.control_dir) == []
    assert not rig.orders.paused


def test_when_all_stand_at_once_stop_wins_and_resume_lifts_the_pause(rig: Rig) -> None:
    rig.activate()
    for name in ("checkpoint", "skip", "pause", "resume", "stop"):
        rig.touch(name)
    rig.tick()
    assert rig.control.stop_asked is not None
    assert not rig.orders.paused
    assert [entry["command"] for entry in rig.said()["recent"]] == ["stop", "resume", "skip", "checkpoint"]
    assert rig.ordered()["command"] == "skip"


def test_the_reason_of_a_pause_stands_in_its_event_and_goes_with_it(rig: Rig) -> None:
    rig.touch("pause", b'{"reason": "lunch"}')
    rig.tick()
    assert rig.orders.paused_why == "lunch"
    event = json.loads(rig.workspace.status_file("events.jsonl").read_text().splitlines()[-1])
    assert (event["command"], event["message"], event["reason"]) == ("pause", "pause: lunch", "lunch")
    (rig.workspace.control_dir / "pause").unlink()
    rig.tick()
    assert rig.orders.paused_why is None


def test_a_second_pause_is_answered_too(rig: Rig) -> None:
    write_command(rig.workspace, "pause")
    rig.tick()
    write_command(rig.workspace, "pause", reason="again")
    rig.tick()
    assert rig.said()["effective_at"] is None, "the first is not in effect yet"
    rig.obey()
    first, second = rig.said()["recent"]
    assert first["effective_at"] and second["effective_at"] and second["step"] == 4
    write_command(rig.workspace, "pause", reason="and again")
    rig.tick()
    assert (rig.said()["reason"], rig.said()["note"]) == ("and again", "it is paused already")
    assert rig.said()["effective_at"]
    rig.tick()
    assert len(rig.said()["recent"]) == 3, "what merely stands is not asked again"
    assert rig.orders.paused_why == "and again"


def test_what_is_no_control_file_is_told_the_names_there_are(rig: Rig) -> None:
    rig.touch("rewind.json")
    rig.tick()
    [(_path, reason)] = rig.control.ignored
    assert "checkpoint; VERB-ANYTHING.json for the verbs cancel, retry, promote, rollback, rewind" in reason


def test_a_pause_may_carry_a_reason_and_ask_for_the_gpu(rig: Rig) -> None:
    write_command(rig.workspace, "pause", reason="a game", by="me", release_gpu=True)
    rig.tick()
    assert (rig.ordered()["release_gpu"], rig.ordered()["reason"]) == (True, "a game")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"{not json", b"x" * 5_000_000, b"[1]", b"\x1b[31m"])
def test_odd_content_pauses_all_the_same(rig: Rig, content: bytes) -> None:
    rig.touch("pause", content)
    rig.tick()
    assert rig.orders.paused


def test_a_control_file_larger_than_memory_is_read_to_4_kb(rig: Rig) -> None:
    path = rig.touch("pause")
    os.truncate(path, 1 << 40)  # sparse
    rig.tick()
    assert rig.orders.paused


def test_links_folders_and_fifos_are_never_obeyed(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x")
    (rig.workspace.control_dir / "pause").symlink_to(tmp_path / "target")
    (rig.workspace.control_dir / "skip").mkdir()
    os.mkfifo(rig.workspace.control_dir / "checkpoint")
    rig.touch("dance")
    rig.tick()
    assert not rig.orders.paused
    assert {path.name for path, _ in rig.control.ignored} == {"pause", "skip", "checkpoint", "dance"}
    assert (tmp_path / "target").exists()


def test_a_pause_is_answered_though_another_name_of_it_stands_already(rig: Rig) -> None:
    rig.touch("PAUSE")
    rig.tick()
    rig.obey()
    write_command(rig.workspace, "pause", reason="second")
    rig.tick()
    rig.tick()
    first, second = rig.said()["recent"]
    assert (first["file"], second["file"], second["reason"]) == ("PAUSE", "pause", "second")
    assert second["effective_at"] is not None
    (rig.workspace.control_dir / "pause").unlink()
    rig.tick()
    assert rig.orders.paused


def test_skip_names_the_active_job(rig: Rig) -> None:
    job_id = rig.activate()
    rig.touch("skip", b"loss looks wrong")
    rig.tick()
    assert (rig.ordered()["command"], rig.ordered()["job_id"]) == ("skip", job_id)
    assert rig.ordered()["reason"] == "loss looks wrong"
    assert not (rig.workspace.control_dir / "skip").exists()


def test_skip_without_an_active_job_is_answered_at_once(rig: Rig) -> None:
    rig.touch("skip")
    rig.tick()
    assert (rig.said()["command"], rig.said()["note"]) == ("skip", "no job was active")
    assert rig.said()["effective_at"] is not None


def test_a_request_is_carried_out_acknowledged_and_removed(rig: Rig) -> None:
    name = write_request(rig.workspace, "cancel", id="some")
    rig.tick()
    assert [request.arguments for request in rig.asked] == [{"id": "some"}]
    assert (rig.said()["command"], rig.said()["id"], rig.said()["file"]) == ("cancel", "some", name)
    assert rig.said()["error"] is None
    assert not (rig.workspace.control_dir / name).exists()


def test_a_request_that_cannot_be_met_says_why(rig: Rig) -> None:
    write_request(rig.workspace, "cancel", id="none")
    rig.tick()
    assert "no job 'none'" in rig.said()["error"]
    assert rig.said()["effective_at"] is not None


def test_a_request_still_being_written_has_a_second_to_become_whole(rig: Rig) -> None:
    path = rig.touch("cancel-1.json", b'{"id": ')
    rig.tick()
    assert path.exists()
    path.write_bytes(b'{"id": "some"}')
    rig.tick()
    assert len(rig.asked) == 1
    broken = rig.touch("cancel-2.json", b"{")
    rig.tick()
    rig.tick(1.5)
    assert not broken.exists()
    assert rig.said()["error"]


def test_at_the_start_bare_commands_are_stale_and_pause_and_requests_are_not(rig: Rig) -> None:
    for name in ("stop", "skip", "resume", "Checkpoint", "pause"):
        rig.touch(name)
    write_request(rig.workspace, "cancel", id="some")
    rig.control.start_clean()
    left = {name.partition("-")[0] for name in os.listdir(rig.workspace.control_dir)}
    assert left == {"pause", "cancel"}
    rig.tick()
    assert rig.orders.paused
    assert rig.control.stop_asked is None


def test_a_stop_is_acknowledged_when_the_daemon_ends(rig: Rig) -> None:
    rig.touch("stop", b"maintenance")
    rig.tick()
    assert rig.control.stop_asked == "maintenance"
    assert rig.said()["effective_at"] is None
    rig.control.note_stopped(12, "12-aaaaaaaaaaaa")
    assert (rig.said()["step"], rig.said()["checkpoint"]) == (12, "12-aaaaaaaaaaaa")


def test_what_is_written_fits_the_schema(rig: Rig, workspace: Workspace) -> None:
    commit(workspace, 0)
    rig.touch("checkpoint")
    rig.tick()
    rig.obey()
    jsonschema.validate(rig.said(), json.loads(schema_file("control").read_text()))
    assert rig.said()["checkpoint"] == "4-aaaaaaaaaaaa"
