"""What the background child finds out about files that were let in, and the index it keeps of their rows."""

import json
import re
import shutil
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from audit_kit import audit, found, make_farm, tell
from core.daemon import audit_worker
from core.errors import StorageError
from core.job_queue import Job, JobQueue
from core.validation import sketches
from core.validation.audit import IndexBehindError
from core.validation.expected import JobRows
from core.validation.gate import check_file
from core.validation.leaks import leaks
from core.validation.looks import DEEP_LOOKS, Looks
from core.validation.result import Issues
from core.validation.row_index import RowIndex
from core.verdicts import audit_of, audited_jobs, verdict_of, whole_verdict
from gate_kit import Gates, chat, lines, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def farm(tmp_path: Path, tokenizer: Path) -> Gates:
    return make_farm(tmp_path, tokenizer)


def test_rows_seen_before_and_rows_nearly_seen_before_are_warned_about_with_their_file(farm: Gates) -> None:
    farm.queue(lines(tell(i) for i in range(30)), name="first.jsonl", lane="done")
    second = [tell(3), tell(4, "tonight"), *(tell(100 + i) for i in range(8)), tell(100, "again")]
    job = farm.queue(lines(second), name="second.jsonl")
    audit(farm)
    assert found(farm, job) == {"seen_before": 1, "near_before": 1, "near_in_file": 1}
    issues = {issue["code"]: issue for issue in whole_verdict(farm.workspace, job.job_id)["issues"]}
    assert issues["seen_before"]["examples"] == [1] and issues["near_duplicate"]["examples"] == [2, 11]
    assert (
        "1 of 11 rows (9.1%) are equal to rows in files before it (most in first.jsonl)"
        in (issues["seen_before"]["message"])
    )
    assert "1 in this file, 1 in files before it" in issues["near_duplicate"]["message"]
    assert {issue["severity"] for issue in issues.values()} == {"warning"}


def test_a_file_is_compared_with_files_before_it_and_not_with_later_or_untrained_ones(
    tmp_path: Path, tokenizer: Path
) -> None:
    for level, before in (("standard", 0), ("deep", 20)):
        farm = make_farm(tmp_path / level, tokenizer, level)
        farm.queue(lines(tell(i) for i in range(20)), lane="failed")
        job = farm.queue(lines(tell(i) for i in range(20)))
        farm.queue(lines(tell(i, "later") for i in range(20)))
        audit(farm)
        assert found(farm, job)["seen_before"] == before
        assert found(farm, job)["near_before"] == 0


def test_a_limit_makes_the_gate_look_and_wait_for_the_index(tmp_path: Path, tokenizer: Path) -> None:
    farm = make_farm(tmp_path, tokenizer, limits={"near_duplicate": 0.2, "seen_before": 0.5})
    farm.queue(lines(tell(i) for i in range(20)), name="old.jsonl", lane="done")
    again = farm.claim(lines(tell(i, "tonight") for i in range(20)))
    with pytest.raises(IndexBehindError) as caught:
        farm.run(again)
    assert caught.value.retryable and "1 are not in the index yet" in caught.value.message
    audit(farm)
    verdict = farm.run(again).verdict
    assert (verdict["state"], verdict["code"]) == ("rejected", "near_duplicate")
    assert "20 in files before it (most in old.jsonl)" in verdict["message"]
    assert "validation.limits.near_duplicate allows 20.00%" in verdict["message"]
    assert not [path for path in again.iterdir() if path.name.startswith(".rows")]
    shutil.rmtree(again)
    once_more = farm.claim(lines(tell(i) for i in range(20)), name="other.jsonl")
    same = farm.run(once_more).verdict
    shutil.rmtree(once_more)
    assert (same["state"], same["code"]) == ("rejected", "seen_before")
    assert farm.drop(lines(tell(100 + i) for i in range(20)))[1]["state"] == "queued"


def test_a_file_that_is_still_in_the_gates_is_waited_for_by_those_after_it(tmp_path: Path, tokenizer: Path) -> None:
    farm = make_farm(tmp_path, tokenizer, limits={"near_duplicate": 0.2})
    first = farm.claim(lines(tell(i) for i in range(20)))
    second = farm.claim(lines(tell(i, "tonight") for i in range(20)))
    assert farm.run(first).state == "queued"  # and not yet in its lane
    with pytest.raises(IndexBehindError):
        farm.run(second)
    shutil.rmtree(first)
    assert farm.run(second).state == "queued"


def test_without_a_limit_nothing_of_it_is_waited_for(farm: Gates) -> None:
    farm.queue(lines(tell(i) for i in range(20)), lane="done")
    _, verdict = farm.drop(lines(tell(i) for i in range(20)))
    assert verdict["state"] == "queued" and "audit" not in verdict
    assert not farm.workspace.row_index_dir.exists()


def test_check_at_level_deep_compares_with_the_history_and_writes_nothing(farm: Gates, tmp_path: Path) -> None:
    farm.queue(lines(tell(i) for i in range(20)), name="old.jsonl", lane="done")
    audit(farm)
    file = tmp_path / "new.jsonl"
    file.write_text(lines([tell(1), tell(2, "tonight"), tell(77)]))
    before = sorted(tmp_path.rglob("*"))
    verdict = check_file(file, farm.settings, farm.workspace, "deep")
    assert sorted(tmp_path.rglob("*")) == before
    duplicates = verdict["audit"]["duplicates"]
    assert (duplicates["seen_before"], duplicates["near_before"]) == (1, 1)
    assert duplicates["files"][0]["file"] == "old.jsonl"


def test_a_job_whose_rows_are_gone_is_audited_once_and_says_so(farm: Gates) -> None:
    job = farm.queue(lines([tell(1)]), lane="failed")
    job.data_file.write_text("not what it was\n")
    audit(farm)
    assert "not_audited" in {issue["code"] for issue in whole_verdict(farm.workspace, job.job_id)["issues"]}
    assert audit_worker.waiting_for_audit(farm.workspace, RowIndex(farm.workspace.row_index_dir)) == []


def test_a_job_goes_into_the_index_only_after_its_audit_is_written(
    farm: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = farm.queue(lines([tell(1)]))

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RowIndex, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            audit(farm)
    assert [
        j.job_id for j in audit_worker.waiting_for_audit(farm.workspace, RowIndex(farm.workspace.row_index_dir))
    ] == [job.job_id]
    audit(farm)
    assert RowIndex(farm.workspace.row_index_dir).job_ids == {job.job_id}
    assert not list(farm.workspace.row_index_dir.glob(".*"))


class _Page(HTMLParser):
    """Counts tags; texts are what a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_level_deep_writes_a_page_that_stands_alone_and_shows_no_markup_of_the_data(
    tmp_path: Path, tokenizer: Path
) -> None:
    farm = make_farm(tmp_path, tokenizer, "deep")
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [chat(0, f"{evil}\x1b[31m\u202e"), *(tell(i) for i in range(60)), chat(7, "mail jo.doe@example.org")]
    job = farm.queue(lines(rows), name="<b>evil.jsonl")
    audit(farm)
    verdict = whole_verdict(farm.workspace, job.job_id)
    report = farm.workspace.root / verdict["audit"]["report"]
    shown = _Page(report.read_text())
    assert shown.tags.isdisjoint({"script", "img", "b", "link", "iframe"}) and {"svg", "ins", "table"} <= shown.tags
    assert evil in shown.text and "<b>evil.jsonl" in shown.text
    assert "\x1b" not in shown.text and "\u202e" not in shown.text and r"\x1b[31m\u202e" in shown.text
    assert "private_data" in shown.text and "jo.doe@example.org" not in shown.text
    assert not re.search(r"https?://", report.read_text())
    assert verdict["audit"]["by_role"]["assistant"]["turns"] == 62
    assert sum(verdict["audit"]["row_tokens"]["counts"]) == 62


def test_what_a_verdict_shows_of_rows_stands_in_no_list(farm: Gates) -> None:
    job = farm.queue(lines([tell(1)]))
    assert "mask" in whole_verdict(farm.workspace, job.job_id)
    assert "mask" not in verdict_of(farm.workspace, job.job_id)


def test_tokens_are_told_by_who_speaks(farm: Gates) -> None:
    system = {"role": "system", "content": "be brief"}
    rows = [{"messages": [system, *tell(i)["messages"]]} for i in range(20)]
    _, verdict = farm.drop(lines(rows))
    roles = verdict["tokens"]["by_role"]
    assert roles["rows"] == 20 and {"system", "user", "assistant"} <= roles.keys()
    assert roles["assistant"]["p50"] > roles["user"]["p50"] > 0
    assert roles["system"]["max"] == roles["system"]["p50"]


def test_a_row_cut_at_max_length_shows_what_is_cut_away(tmp_path: Path, tokenizer: Path) -> None:
    farm = Gates(tmp_path / "root", tokenizer, hyperparams={"max_length": 32}, validation={"too_long": "truncate"})
    _, verdict = farm.drop(lines([tell(1), chat(2)]))
    cut, whole = verdict["mask"]
    assert cut["tokens"] == 32 and cut["pieces"][-1]["cut"] is True and "sea1" in cut["pieces"][-1]["text"]
    assert not any(piece.get("cut") for piece in whole["pieces"])


def test_what_is_shown_of_a_row_is_bounded(tmp_path: Path, tokenizer: Path) -> None:
    farm = Gates(tmp_path / "root", tokenizer, hyperparams={"max_length": 100_000})
    _, verdict = farm.drop(lines([chat(1, "word " * 20_000), chat(2), chat(3), chat(4)]))
    assert [row["line"] for row in verdict["mask"]] == [1, 2, 3]
    assert len(json.dumps(verdict["mask"])) < 10_000
    assert max(piece.get("left_out_chars", 0) for piece in verdict["mask"][0]["pieces"]) > 90_000


def test_a_retried_job_is_audited_again(farm: Gates) -> None:
    from core.daemon.claims import ClaimDesk

    job = farm.queue(lines([tell(1)]), lane="failed")
    audit(farm)
    ClaimDesk(farm.workspace, JobQueue(farm.workspace)).back_to_claim(job)
    assert audit_of(farm.workspace, job.job_id) is None


def test_a_file_audited_again_is_not_compared_with_what_came_after_it(farm: Gates) -> None:
    first = farm.queue(lines(tell(i) for i in range(20)), lane="done")
    farm.queue(lines(tell(i, "tonight") for i in range(20)))
    audit(farm)
    (farm.workspace.audits_dir / f"{first.job_id}.json").unlink()
    audit(farm)
    assert found(farm, first) == {"seen_before": 0, "near_before": 0, "near_in_file": 0}


def test_equal_rows_of_one_file_are_not_called_nearly_equal(farm: Gates) -> None:
    job = farm.queue(lines([*(tell(i) for i in range(20)), tell(3), tell(4), tell(5, "tonight")]))
    audit(farm)
    assert found(farm, job) == {"seen_before": 0, "near_before": 0, "near_in_file": 1}
    assert "duplicate_rows" in {issue["code"] for issue in job.verdict()["issues"]}


def test_a_file_on_which_the_audit_fails_does_not_keep_the_next_one_from_its_turn(
    farm: Gates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = farm.queue(lines([tell("secretive")]))
    good = farm.queue(lines([tell(2)]))
    sketch = sketches.Sketcher.__call__

    def breaks(self: sketches.Sketcher, row: dict[str, Any]) -> Any:
        if "secretive" in json.dumps(row):
            raise ZeroDivisionError(json.dumps(row))
        return sketch(self, row)

    monkeypatch.setattr(sketches.Sketcher, "__call__", breaks)
    audit(farm)
    issues = {issue["code"]: issue for issue in whole_verdict(farm.workspace, bad.job_id)["issues"]}
    assert "the audit itself failed (ZeroDivisionError)" in issues["not_audited"]["message"]
    assert found(farm, good)["seen_before"] == 0
    assert "secretive" not in caplog.text + json.dumps(audit_of(farm.workspace, bad.job_id))


def test_a_full_disk_ends_the_child_and_blames_no_file(farm: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    job = farm.queue(lines([tell(1)]))

    def full(*_arguments: object) -> None:
        raise StorageError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("core.validation.audit.write_json", full)
        with pytest.raises(StorageError):
            audit(farm)
    assert audit_of(farm.workspace, job.job_id) is None


def test_a_folder_in_place_of_an_audit_is_put_aside_and_the_audit_is_made(farm: Gates) -> None:
    job = farm.queue(lines([tell(1)]))
    for ending in ("json", "html"):
        (farm.workspace.audits_dir / f"{job.job_id}.{ending}").mkdir(parents=True)
    (farm.workspace.audits_dir / f"{job.job_id}.json" / "mine.txt").write_text("kept")
    assert job.job_id not in audited_jobs(farm.workspace)
    audit(farm)
    assert found(farm, job)["seen_before"] == 0
    assert [kept.read_text() for kept in farm.workspace.audits_dir.glob(".*/mine.txt")] == ["kept"]


@pytest.mark.parametrize(
    "content",
    [
        "hundred " * 20_000,
        "million " * 20_000,
        "one " * 20_000,
        "9" * 50_000,
        "1,000" * 20_000,
        "a" * 5_000_000,
        "@" * 200_000,
    ],
    ids=lambda content: content[:8],
)
def test_no_row_keeps_the_looks_busy_or_makes_them_raise(content: str) -> None:
    looks = Looks(DEEP_LOOKS)
    looks.look(1, bytes(32), chat(1, content))
    looks.look(2, bytes(32), {"messages": [*chat(1, content)["messages"], *chat(2, content)["messages"]]})
    looks.look(3, bytes(32), {"text": content})
    tracemalloc.start()
    sketches.Sketcher()({"text": content})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20
    assert looks.report(Issues(), {})["rows"] == 3


def test_a_conversation_of_thousands_of_turns_is_looked_at_in_bounded_time() -> None:
    turns = [message for i in range(20_000) for message in chat(i, f"a rather long answer number {i}")["messages"]]
    assert leaks({"messages": turns}) is False


@pytest.mark.parametrize("moment", ["verdict", "rows"])
def test_a_job_that_moves_on_while_it_is_audited_is_followed(
    farm: Gates, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    job = farm.queue(lines(tell(i) for i in range(9)))
    queue, moved = JobQueue(farm.workspace), []
    owner, name = (Job, "verdict") if moment == "verdict" else (JobRows, "with_lines")
    real = getattr(owner, name)

    def moving(self: Any) -> Any:
        if not moved:
            moved.append(queue.move(job, "active"))
        return real(self)

    monkeypatch.setattr(owner, name, moving)
    audit(farm)
    assert moved and found(farm, job)["seen_before"] == 0
    assert RowIndex(farm.workspace.row_index_dir).job_ids == {job.job_id}


def test_of_large_rows_only_a_little_is_kept_for_the_sample() -> None:
    looks = Looks({"language_mix"})
    tracemalloc.start()
    for number in range(300):
        looks.look(number, number.to_bytes(32, "big"), chat(number, "word " * 100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20
