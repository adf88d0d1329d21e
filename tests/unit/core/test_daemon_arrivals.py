"""How files come in: links, permissions, dates, spellings, broken copies and late sidecars."""

import json
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.paths import Workspace
from daemon_rig import IntakeRig

NOBODY = 65534


@pytest.fixture
def rig(workspace: Workspace, clock: Any) -> IntakeRig:
    return IntakeRig(workspace, clock)


@pytest.fixture
def plain_user(clock: Any) -> Iterator[IntakeRig]:
    """A rig run by somebody whom file modes bind: root passes over them."""
    root = Path(tempfile.mkdtemp(prefix="dropforge-plain-"))
    user = os.geteuid()
    try:
        if user == 0:
            os.chown(root, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        workspace = Workspace(root / "root")
        workspace.root.mkdir()
        workspace.make_folders()
        yield IntakeRig(workspace, clock)
    finally:
        os.seteuid(user)
        shutil.rmtree(root)


def test_a_file_of_mode_000_stays_is_named_once_and_is_taken_when_its_mode_is_mended(plain_user: IntakeRig) -> None:
    path = plain_user.drop("secret.jsonl")
    path.chmod(0)
    for _ in range(5):
        plain_user.settle()
    assert path.exists() and plain_user.intake.idle
    assert [entry["file"] for entry in plain_user.intake.ignored] == ["secret.jsonl"]
    assert plain_user.intake.ignored[0]["reason"].startswith("permission denied")
    events = plain_user.workspace.status_file("events.jsonl")
    assert not events.exists() or "secret.jsonl" not in events.read_text(), "said at each scan"
    path.chmod(0o600)
    plain_user.settle()
    assert plain_user.lane("normal") == ["secret.jsonl"]


def test_a_file_of_another_owner_that_we_may_read_is_taken(plain_user: IntakeRig) -> None:
    path = plain_user.drop("theirs.jsonl")
    path.chmod(0o444)
    plain_user.settle()
    assert plain_user.lane("normal") == ["theirs.jsonl"]


@pytest.mark.parametrize("content", ['{"row": 1}\n', "bad\n"])
def test_the_outside_name_of_a_hard_link_is_neither_changed_nor_removed(
    rig: IntakeRig, tmp_path: Path, content: str
) -> None:
    outside = tmp_path / "mine.jsonl"
    outside.write_text(content)
    before = outside.stat().st_ino
    os.link(outside, rig.workspace.inbox / "mine.jsonl")
    rig.settle()
    [home] = [*rig.context.queue.jobs("normal"), *rig.rejected()] if content[0] == "{" else rig.rejected()
    home.data_file.write_text("ours\n")
    shutil.rmtree(home.folder)
    assert (outside.read_text(), outside.stat().st_ino, outside.stat().st_nlink) == (content, before, 1)


@pytest.mark.parametrize("stamp", [0, 1, 2**33, 1_700_000_000])
def test_dates_of_files_say_nothing_about_whether_they_are_complete(rig: IntakeRig, stamp: int) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        os.utime(rig.drop(name, f"{name}\n"), (stamp, stamp))
    rig.tick()
    assert rig.lane("normal") == []
    rig.tick(1.9)
    assert rig.lane("normal") == []
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl", "b.jsonl"]


def test_two_spellings_of_one_name_are_two_files(rig: IntakeRig) -> None:
    names = [unicodedata.normalize(form, "caf\u00e9.jsonl") for form in ("NFC", "NFD")] + ["CAF\u00c9.jsonl"]
    for name in names:
        rig.drop(name, name + "\n")
    rig.settle()
    jobs = rig.context.queue.jobs("normal")
    assert {job.data_file.name: job.data_file.read_text() for job in jobs} == {name: name + "\n" for name in names}
    assert len({job.job_id for job in jobs}) == 3


def test_a_whole_copy_under_the_name_of_a_refused_one_is_taken(rig: IntakeRig) -> None:
    rig.drop("a.jsonl", '{"row": 1}\nbad')
    rig.settle()
    assert len(rig.rejected()) == 1
    rig.drop("a.jsonl", '{"row": 1}\n{"row": 2}\n')
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"] and len(rig.rejected()) == 1


@pytest.mark.parametrize("sidecar_after_s", [-5.0, 1.5])
def test_a_sidecar_that_comes_first_or_within_the_window_is_joined(rig: IntakeRig, sidecar_after_s: float) -> None:
    sidecar = ("a.jsonl.meta.json", '{"generator_id": "curriculum", "priority": "high"}')
    if sidecar_after_s < 0:
        rig.drop(*sidecar)
        rig.tick()
        rig.tick(-sidecar_after_s)
        rig.drop("a.jsonl")
    else:
        rig.drop("a.jsonl")
        rig.tick()
        rig.tick(sidecar_after_s)
        rig.drop(*sidecar)
    rig.settle()
    [job] = rig.context.queue.jobs("high")
    assert json.loads(job.sidecar_file.read_text())["generator_id"] == "curriculum"
    assert not list(rig.workspace.inbox.glob("*.json"))


def test_files_that_wait_keep_their_order_over_a_restart(rig: IntakeRig) -> None:
    for number in range(30):
        os.utime(rig.drop(f"{number:02}.jsonl", f"{number}\n"), ns=(10**9 * number, 10**9 * number))
    rig.tick()
    rig.restart()
    rig.settle()
    assert rig.lane("normal") == [f"{number:02}.jsonl" for number in range(30)]


def test_an_empty_file_waits_the_window_before_it_is_refused(rig: IntakeRig) -> None:
    path = rig.drop("a.jsonl", "")
    rig.tick()
    rig.tick(1.5)
    assert rig.rejected() == []
    path.write_text('{"row": 1}\n')
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"]
    rig.drop("b.jsonl", "")
    rig.settle()
    assert len(rig.rejected()) == 1


def test_an_inbox_without_events_is_found_by_the_scan(rig: IntakeRig) -> None:
    """A network filesystem tells nobody that a file came."""
    rig.tick()
    rig.drop("a.jsonl")
    for _ in range(40):
        rig.clock.advance(0.5)
        rig.intake.tick(rig.clock(), watching=False)
    assert rig.lane("normal") == ["a.jsonl"]
