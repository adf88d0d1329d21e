"""From the drop to a home: settling, claiming, sidecars, duplicates, workers that die, crashes in between."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from core.atomic import rename_durable
from core.daemon import claims
from core.daemon.candidates import Settler, probe, scan
from core.errors import StorageError
from core.paths import Workspace, schema_file
from daemon_rig import IntakeRig


@pytest.fixture
def rig(workspace: Workspace, clock: object) -> Iterator[IntakeRig]:
    made = IntakeRig(workspace, clock)
    yield made
    made.context.wakeup.close()


def test_a_file_is_taken_only_after_it_stood_still_for_the_window(rig: IntakeRig) -> None:
    path = rig.drop("a.jsonl", "one\n")
    rig.tick()
    rig.tick(1.5)
    path.write_text("one\ntwo\n")
    rig.tick(1.0)
    rig.tick(1.5)
    assert path.exists()
    rig.tick(0.6)
    rig.tick()
    assert rig.lane("normal") == ["a.jsonl"]
    assert rig.context.queue.jobs("normal")[0].verdict()["rows"] == 2


def test_a_file_that_lay_there_before_the_start_waits_the_window_too(rig: IntakeRig) -> None:
    path = rig.drop("a.jsonl")
    os.utime(path, (1, 1))
    rig.tick()
    assert path.exists()
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"]


def test_a_writer_that_keeps_the_file_open_is_waited_for(rig: IntakeRig) -> None:
    path = rig.workspace.inbox / "slow.jsonl"
    with path.open("w") as writer:
        writer.write("one\n")
        writer.flush()
        rig.tick()
        rig.tick(60.0)
        assert rig.intake.ignored == [{"file": "slow.jsonl", "reason": "still open for writing"}]
        writer.write("two\n")
    rig.settle()
    assert rig.context.queue.jobs("normal")[0].verdict()["rows"] == 2


def test_folders_give_the_priority_and_the_sidecar_beats_them(rig: IntakeRig) -> None:
    rig.drop("n.jsonl", "n\n")
    rig.drop("h.jsonl", "h\n", "high")
    rig.drop("l.jsonl", "l\n", "low")
    rig.drop("s.jsonl", "s\n", "low")
    rig.drop("s.jsonl.meta.json", '{"priority": "high"}', "low")
    rig.settle()
    assert (rig.lane("normal"), rig.lane("low")) == (["n.jsonl"], ["l.jsonl"])
    assert sorted(rig.lane("high")) == ["h.jsonl", "s.jsonl"]


def test_files_settled_together_are_claimed_by_time_and_name(rig: IntakeRig) -> None:
    for name, stamp in (("z.jsonl", 5), ("b.jsonl", 7), ("a.jsonl", 7)):
        os.utime(rig.drop(name, name + "\n"), ns=(stamp, stamp))
    rig.settle()
    assert rig.lane("normal") == ["z.jsonl", "a.jsonl", "b.jsonl"]


def test_a_refused_file_lies_in_rejected_with_its_verdict_and_sidecar(rig: IntakeRig) -> None:
    rig.drop("x.jsonl", "bad\n")
    rig.drop("x.jsonl.meta.json", "{}")
    rig.settle()
    [job] = rig.rejected()
    assert {entry.name for entry in job.folder.iterdir()} >= {"x.jsonl", "x.jsonl.meta.json", "verdict.json"}
    verdict = job.verdict()
    assert (verdict["state"], verdict["code"], verdict["file"]) == ("rejected", "bad_json", "x.jsonl")
    assert verdict["finished_at"]


def test_the_same_bytes_under_another_name_are_done_as_a_duplicate(rig: IntakeRig) -> None:
    rig.drop("a.jsonl", "same\n")
    rig.settle()
    rig.drop("b.jsonl", "same\n")
    rig.settle()
    first = rig.context.queue.jobs("normal")[0].job_id
    [copy] = rig.context.queue.jobs("done")
    assert (copy.verdict()["duplicate_of"], copy.verdict()["code"]) == (first, "duplicate")


def test_a_duplicate_is_known_over_a_restart(rig: IntakeRig) -> None:
    rig.drop("a.jsonl", "same\n")
    rig.settle()
    rig.restart()
    rig.drop("b.jsonl", "same\n")
    rig.settle()
    assert rig.lane("done") == ["b.jsonl"]


def test_bytes_of_a_failed_job_may_come_again(rig: IntakeRig) -> None:
    rig.drop("a.jsonl", "same\n")
    rig.settle()
    rig.context.queue.move(rig.context.queue.jobs("normal")[0], "failed")
    rig.drop("b.jsonl", "same\n")
    rig.settle()
    assert rig.lane("normal") == ["b.jsonl"]


def test_a_second_copy_of_a_duplicate_still_names_the_first(rig: IntakeRig) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        rig.drop(name, "same\n")
        rig.settle()
    rig.restart()
    rig.drop("d.jsonl", "same\n")
    rig.settle()
    first = rig.context.queue.jobs("normal")[0].job_id
    assert {job.verdict()["duplicate_of"] for job in rig.context.queue.jobs("done")} == {first}


def test_a_copy_that_was_never_trained_does_not_stand_for_the_original(rig: IntakeRig) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        rig.drop(name, "same\n")
        rig.settle()
    rig.context.queue.move(rig.context.queue.jobs("normal")[0], "failed")
    rig.restart()
    rig.drop("c.jsonl", "same\n")
    rig.settle()
    assert rig.lane("normal") == ["c.jsonl"]


def test_the_same_name_with_other_content_becomes_a_second_job(rig: IntakeRig) -> None:
    rig.drop("train.jsonl", "one\n")
    rig.settle()
    rig.drop("train.jsonl", "two\n")
    rig.settle()
    assert rig.lane("normal") == ["train.jsonl", "train.jsonl"]
    first, second = rig.context.queue.jobs("normal")
    assert first.job_id < second.job_id
    assert (first.data_file.read_text(), second.data_file.read_text()) == ("one\n", "two\n")


def test_job_ids_never_go_back_with_the_clock(rig: IntakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    future = "20990101T000000000000Z-abcdef"
    (rig.workspace.lane("done") / future).mkdir()
    rig.restart()
    rig.drop("a.jsonl")
    rig.settle()
    assert rig.context.queue.jobs("normal")[0].job_id > future


def test_a_file_without_a_spec_waits_for_its_sidecar_and_is_accepted_with_it(rig: IntakeRig) -> None:
    rig.drop("q.jsonl", "nospec\n")
    rig.tick()
    rig.tick(2.1)
    rig.tick(0.1)
    assert rig.rejected() == []
    rig.drop("q.jsonl.meta.json", '{"spec": "chat_sft_v1"}')
    for _ in range(8):
        rig.tick(0.5)
    assert rig.lane("normal") == ["q.jsonl"]


def test_a_file_whose_sidecar_never_comes_is_refused_after_the_wait(rig: IntakeRig) -> None:
    rig.drop("q.jsonl", "nospec\n")
    rig.tick()
    rig.tick(2.1)
    rig.tick(0.1)
    rig.tick(9.0)
    assert rig.rejected() == []
    rig.tick(1.5)
    assert rig.rejected()[0].verdict()["code"] == "spec_unknown"


def test_a_late_sidecar_adds_lineage_and_nothing_else(rig: IntakeRig) -> None:
    rig.drop("a.jsonl")
    rig.settle()
    rig.drop("a.jsonl.meta.json", '{"generator_id": "curriculum", "spec": "other", "columns": {"prompt": "x"}}')
    rig.settle()
    [job] = rig.context.queue.jobs("normal")
    assert json.loads(job.sidecar_file.read_text()) == {"generator_id": "curriculum"}
    assert not (rig.workspace.inbox / "a.jsonl.meta.json").exists()


def test_a_sidecar_alone_stays_and_is_refused_after_a_day(rig: IntakeRig) -> None:
    path = rig.drop("ghost.jsonl.meta.json", "{}")
    rig.settle()
    assert path.exists()
    assert rig.intake.ignored[0]["file"] == "ghost.jsonl.meta.json"
    rig.tick(24 * 3600)
    rig.tick(3.0)
    assert not path.exists()
    assert json.loads((rig.workspace.rejected_dir.glob("*/verdict.json").__next__()).read_text())["code"] == (
        "orphan_sidecar"
    )


@pytest.mark.parametrize(
    "name",
    [".x.jsonl.AbC123", "x.jsonl.part", "x.jsonl.tmp", "x.jsonl~", ".x.jsonl.swp", "._x.jsonl", ".nfs0001",
     "x.jsonl.crdownload", "#x.jsonl#", "4913", "x.txt", "x.jsonl.rejected.jsonl", "x.JSONL.gzz"],
)  # fmt: skip
def test_names_of_unfinished_and_foreign_files_stay_and_are_listed(rig: IntakeRig, name: str) -> None:
    path = rig.drop(name)
    rig.settle()
    assert path.exists()
    assert [entry["file"] for entry in rig.intake.ignored] == [name]


def test_what_is_no_regular_file_stays_unread(rig: IntakeRig, tmp_path: Path) -> None:
    outside = tmp_path / "secret.jsonl"
    outside.write_text("secret\n")
    inbox = rig.workspace.inbox
    (inbox / "link.jsonl").symlink_to(outside)
    (inbox / "loop.jsonl").symlink_to(inbox / "loop.jsonl")
    (inbox / "zero.jsonl").symlink_to("/dev/zero")
    os.mkfifo(inbox / "fifo.jsonl")
    (inbox / "folder.jsonl").mkdir()
    rig.settle()
    reasons = {entry["file"]: entry["reason"] for entry in rig.intake.ignored}
    assert reasons == {
        "link.jsonl": "a symbolic link, not a regular file",
        "loop.jsonl": "a symbolic link, not a regular file",
        "zero.jsonl": "a symbolic link, not a regular file",
        "fifo.jsonl": "a FIFO, not a regular file",
        "folder.jsonl": "a folder, not a regular file",
    }
    assert outside.read_text() == "secret\n"
    assert rig.intake.idle


def test_odd_names_are_taken_and_shown_escaped(rig: IntakeRig) -> None:
    # Undecodable bytes, a newline, options, shell and HTML, both spellings of one letter, right-to-left, 255 bytes.
    names = [
        *(b"\xff\xfe.jsonl", b"a\nb.jsonl", b"-rf.jsonl", b"$(x).jsonl", b"<img onerror=1>.jsonl"),
        *(name.encode() for name in ("%2e%2e%2f.jsonl", "e\u0301.jsonl", "\u00e9.jsonl", "\u202egpj.jsonl")),
        b"x" * 249 + b".jsonl",
    ]
    for number, name in enumerate(names):
        (Path(os.fsdecode(os.fsencode(rig.workspace.inbox) + b"/" + name))).write_text(f"{number}\n")
    rig.settle()
    jobs = rig.context.queue.jobs("normal")
    assert {os.fsencode(job.data_file.name) for job in jobs} == set(names)
    shown = [job.verdict()["file"] for job in jobs]
    assert all(name.isprintable() for name in shown)
    assert "\\xff\\xfe.jsonl" in shown
    assert "a\\x0ab.jsonl" in shown


def test_a_hard_link_is_copied_so_that_outside_writes_change_nothing(rig: IntakeRig, tmp_path: Path) -> None:
    outside = tmp_path / "mine.jsonl"
    outside.write_text("one\n")
    os.link(outside, rig.workspace.inbox / "mine.jsonl")
    rig.settle()
    [job] = rig.context.queue.jobs("normal")
    outside.write_text("changed\n")
    assert job.data_file.read_text() == "one\n"
    assert job.data_file.stat().st_nlink == 1
    assert not list(job.folder.glob(".link*"))


def test_a_file_that_goes_away_between_seen_and_claimed_leaves_no_trace(
    rig: IntakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rig.drop("a.jsonl")
    rig.tick()
    real = claims.rename_durable

    def vanish(source: Path, target: Path) -> None:
        path.unlink(missing_ok=True)
        real(source, target)

    monkeypatch.setattr(claims, "rename_durable", vanish)
    rig.tick(2.5)
    assert list(rig.workspace.claim_dir.iterdir()) == []
    assert not rig.context.blocks.intake


def test_held_out_rows_go_to_the_judge_and_leave_the_job(rig: IntakeRig) -> None:
    rig.drop("h.jsonl", "held\n")
    rig.settle()
    [job] = rig.context.queue.jobs("normal")
    assert (rig.workspace.incoming_dir("main") / f"{job.job_id}.jsonl").read_text() == "held\n"
    assert not (job.folder / ".held_out.jsonl").exists()


def test_a_worker_that_dies_once_is_asked_again_and_twice_refuses_the_file(rig: IntakeRig) -> None:
    rig.drop("a.jsonl", "one\n")
    rig.tick()
    rig.worker.deaths.update({"any": 0})
    original = rig.worker.submit

    def die(deaths: int) -> Callable[..., None]:
        left = [deaths]

        def submit(key: str, task: Callable[..., object], *arguments: object) -> None:
            if left[0]:
                left[0] -= 1
                rig.worker.deaths[key] = 1
            original(key, task, *arguments)

        return submit

    rig.worker.submit = die(1)  # type: ignore[method-assign]
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"]
    rig.worker.submit = die(2)  # type: ignore[method-assign]
    rig.drop("b.jsonl", "two\n")
    rig.settle()
    assert rig.rejected()[0].verdict()["code"] == "crashed"


def test_those_behind_a_file_that_kills_the_worker_are_innocent(rig: IntakeRig) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        rig.drop(name, name + "\n")
    rig.tick()
    original = rig.worker.submit

    def submit(key: str, task: Callable[..., object], *arguments: object) -> None:
        if b"a.jsonl" in b"".join(p.read_bytes() for p in Path(str(arguments[0])).glob("*.jsonl")):
            rig.worker.deaths[key] = 1
            for other in list(rig.intake._gating.job_ids):
                if other != key:
                    rig.worker.deaths[other] = 1
        original(key, task, *arguments)

    rig.worker.submit = submit  # type: ignore[method-assign]
    rig.settle()
    assert rig.lane("normal") == ["b.jsonl", "c.jsonl"]
    assert [job.data_file.name for job in rig.rejected()] == ["a.jsonl"]


def test_a_file_over_which_the_worker_hangs_twice_is_refused_and_the_next_one_goes_on(rig: IntakeRig) -> None:
    rig.worker.hangs = 2
    rig.drop("a.jsonl", "one\n")
    rig.settle()
    rig.drop("b.jsonl", "two\n")
    for _ in range(14):
        rig.tick(100.0)
    assert [job.verdict()["code"] for job in rig.rejected()] == ["crashed"]
    assert rig.lane("normal") == ["b.jsonl"]


def test_a_claim_that_waits_can_be_cancelled(rig: IntakeRig) -> None:
    rig.drop("q.jsonl", "nospec\n")
    rig.tick()
    rig.tick(2.1)
    rig.tick(0.1)
    [claim] = os.listdir(rig.workspace.claim_dir)
    assert rig.intake.cancel(claim)
    assert rig.context.queue.jobs("failed")[0].verdict()["code"] == "cancelled"
    rig.intake.take_back(rig.context.queue.jobs("failed")[0])
    rig.settle()
    assert rig.rejected()[0].job_id == claim


def test_a_gate_that_raises_refuses_the_file(rig: IntakeRig) -> None:
    rig.worker.raises.append(ZeroDivisionError("oops"))
    rig.drop("a.jsonl")
    rig.settle()
    assert rig.rejected()[0].verdict()["code"] == "gate_error"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), OSError(24, "Too many open files"), MemoryError()])
def test_a_machine_that_lacks_something_makes_the_file_wait(rig: IntakeRig, error: Exception) -> None:
    rig.worker.raises.append(error)
    rig.drop("a.jsonl")
    rig.tick()
    rig.tick(2.5)
    rig.tick()
    assert "gates" in rig.context.blocks.intake
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"]
    assert not rig.context.blocks.intake


def test_a_disk_that_fails_under_a_file_puts_it_into_held(rig: IntakeRig) -> None:
    rig.worker.raises.append(OSError(5, "Input/output error"))
    rig.drop("a.jsonl")
    rig.settle()
    assert rig.context.queue.jobs("held")[0].verdict()["code"] == "read_error"


@pytest.mark.parametrize("number", range(1, 9))
def test_any_rename_that_fails_once_loses_nothing_and_heals(
    rig: IntakeRig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = [0]
    real = rename_durable

    def sometimes(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] == number:
            raise StorageError("No space left on device", where=str(target))
        real(source, target)

    monkeypatch.setattr(claims, "rename_durable", sometimes)
    monkeypatch.setattr("core.job_queue.rename_durable", sometimes)
    for name in ("a.jsonl", "b.jsonl"):
        rig.drop(name, name + "\n")
        rig.drop(name + ".meta.json", "{}")
    rig.settle()
    rig.settle()
    assert sorted(rig.lane("normal")) == ["a.jsonl", "b.jsonl"]
    assert all(job.sidecar_file.exists() for job in rig.context.queue.jobs("normal"))
    assert rig.intake.idle
    assert not rig.context.blocks.intake


def test_a_claim_left_by_a_crash_is_finished_where_it_stands(rig: IntakeRig) -> None:
    folder = rig.workspace.claim_dir / "20260101T000000000000Z-abcdef"
    folder.mkdir()
    (folder / ".origin.json").write_text('{"lane": "high", "received_at": "2026-01-01T00:00:00.000000Z"}')
    (folder / "a.jsonl").write_text("one\n")
    (rig.workspace.inbox / "a.jsonl.meta.json").write_text("{}")
    empty = rig.workspace.claim_dir / "20260101T000000000001Z-abcdef"
    empty.mkdir()
    (empty / ".origin.json").write_text("{}")
    linked = rig.workspace.claim_dir / "20260101T000000000002Z-abcdef"
    (linked / ".link").mkdir(parents=True)
    (linked / ".link" / "l.jsonl").write_text("linked\n")
    (linked / ".copy.tmp").write_text("half")
    rig.restart()
    rig.settle()
    [job] = rig.context.queue.jobs("high")
    assert job.job_id == folder.name
    assert job.sidecar_file.exists()
    assert rig.context.queue.jobs("normal")[0].data_file.read_text() == "linked\n"
    assert list(rig.workspace.claim_dir.iterdir()) == []


def test_a_decided_claim_is_only_moved_and_not_judged_again(rig: IntakeRig) -> None:
    rig.drop("a.jsonl", "bad\n")
    rig.settle()
    [job] = rig.rejected()
    os.rename(job.folder, rig.workspace.claim_dir / job.job_id)
    calls = list(rig.worker.calls)
    rig.restart()
    rig.settle()
    assert [job.job_id for job in rig.rejected()] == [job.job_id]
    assert rig.worker.calls == calls


def test_nothing_is_taken_while_the_inbox_is_blocked(rig: IntakeRig) -> None:
    rig.context.blocks.intake["disk"] = "disk full: need 1, have 0"
    path = rig.drop("a.jsonl")
    rig.settle()
    assert path.exists()
    del rig.context.blocks.intake["disk"]
    rig.settle()
    assert rig.lane("normal") == ["a.jsonl"]


def test_a_hundred_thousand_names_are_scanned_without_being_opened(workspace: Workspace) -> None:
    for number in range(2000):
        (workspace.inbox / f"{number:05}.jsonl").touch()
    asked: list[Path] = []
    settler = Settler(lambda path: asked.append(path))  # type: ignore[func-returns-value]
    found = scan(workspace, (".jsonl",))
    settler.settled(found.candidates, 2.0, 0.0)
    assert (len(found.candidates), asked) == (2000, [])


def test_a_file_that_may_not_be_read_stays_and_does_not_keep_the_daemon_busy(
    rig: IntakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rig.drop("secret.jsonl")
    real = os.open

    def refuse(name: str, *arguments: Any, **more: Any) -> int:
        if str(name).endswith("secret.jsonl"):
            raise PermissionError(13, "Permission denied")
        return real(name, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    rig.settle()
    assert path.exists()
    assert rig.intake.idle
    assert rig.intake.ignored[0]["reason"].startswith("permission denied")
    monkeypatch.setattr(os, "open", real)
    rig.settle()
    assert rig.lane("normal") == ["secret.jsonl"]


def test_every_verdict_fits_the_schema(rig: IntakeRig) -> None:
    for name, text in (("ok.jsonl", "a\n"), ("dup.jsonl", "a\n"), ("bad.jsonl", "bad\n"), ("n.jsonl", "nospec\n")):
        rig.drop(name, text)
    rig.drop("gone.jsonl.meta.json", "{}")
    rig.settle()
    rig.tick(24 * 3600)
    rig.tick(3.0)
    jobs = [*rig.context.queue.jobs("normal"), *rig.context.queue.jobs("done"), *rig.rejected()]
    assert len(jobs) == 5
    schema = json.loads(schema_file("verdict").read_text())
    for job in jobs:
        jsonschema.validate(job.verdict(), schema)


def test_the_probe_says_whether_somebody_writes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("w"):
        assert probe(path) == "still open for writing"
    assert probe(path) is None
    with path.open():
        assert probe(path) is None
    assert "cannot be opened" in str(probe(tmp_path / "none"))
