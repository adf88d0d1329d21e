"""From the drop to a home: settling, names, claiming, sidecars, duplicates."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.daemon import claims
from core.formats import SUFFIXES
from core.paths import Workspace
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
    [waiting] = rig.intake.waiting
    assert (waiting["file"], waiting["for"]) == ("q.jsonl", "its sidecar q.jsonl.meta.json")
    rig.tick(1.5)
    verdict = rig.rejected()[0].verdict()
    assert verdict["code"] == "spec_unknown"
    assert (waiting["job_id"], waiting["since"]) == (verdict["job_id"], verdict["received_at"])
    assert rig.intake.waiting == []


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


def test_a_suffix_in_capitals_is_as_good_as_any(rig: IntakeRig) -> None:
    rig.suffixes = SUFFIXES
    rig.restart()
    rig.drop("DATA.JSONL", "a\n")
    rig.drop("x.Csv", "b\n")
    rig.drop("x.Csv.meta.json", '{"priority": "high"}')
    rig.settle()
    assert rig.lane("normal") == ["DATA.JSONL"]
    assert rig.lane("high") == ["x.Csv"]
    assert rig.intake.ignored == []


def test_a_sidecar_in_capitals_is_no_data_and_keeps_its_file_until_it_is_renamed(rig: IntakeRig) -> None:
    rig.suffixes = SUFFIXES
    rig.restart()
    data = rig.drop("DATA.CSV")
    sidecar = rig.drop("DATA.CSV.META.JSON", '{"priority": "high"}')
    rig.settle()
    reasons = {entry["file"]: entry["reason"] for entry in rig.intake.ignored}
    assert data.exists() and "rename that to DATA.CSV.meta.json" in reasons["DATA.CSV"]
    assert "rename it" in reasons["DATA.CSV.META.JSON"]
    sidecar.rename(data.with_name("DATA.CSV.meta.json"))
    rig.settle()
    assert rig.lane("high") == ["DATA.CSV"]


@pytest.mark.parametrize("name", ["verdict.json", "settings.json"])
def test_a_file_that_bears_the_name_of_one_of_ours_stays_as_it_is(rig: IntakeRig, name: str) -> None:
    rig.suffixes = SUFFIXES
    rig.restart()
    path = rig.drop(name, '[{"text": "mine"}]')
    rig.settle()
    assert path.read_text() == '[{"text": "mine"}]'
    assert "rename it" in rig.intake.ignored[0]["reason"]


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


@pytest.mark.parametrize("kind", ["a symbolic link", "a FIFO", "a folder"])
def test_a_file_stays_while_its_sidecar_is_no_regular_file_and_is_taken_with_it_once_it_is(
    rig: IntakeRig, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "mine.json").write_text('{"generator_id": "outside"}')
    path = rig.drop("x.jsonl")
    sidecar = path.with_name("x.jsonl.meta.json")
    if kind == "a FIFO":
        os.mkfifo(sidecar)
    elif kind == "a folder":
        sidecar.mkdir()
    else:
        sidecar.symlink_to(tmp_path / "mine.json")
    rig.settle()
    reasons = {entry["file"]: entry["reason"] for entry in rig.intake.ignored}
    assert reasons["x.jsonl"].startswith(f"its sidecar is {kind}, not a regular file: copy the sidecar itself")
    assert path.exists() and rig.intake.idle
    sidecar.rmdir() if kind == "a folder" else sidecar.unlink()
    sidecar.write_text('{"generator_id": "regular"}')
    rig.settle()
    (job,) = rig.context.queue.jobs("normal")
    assert json.loads((job.folder / sidecar.name).read_text())["generator_id"] == "regular"


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
