"""With a second process for half of a file, verdicts are those of one process, word for word, whatever befalls it."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.chat_templates import ChatEncoder
from core.formats import bytes_in
from core.lineage import Sidecar
from core.validation import DATASET_SPECS, labels, second_half
from core.validation.contamination import SuiteIndex
from core.validation.inspection import Inspection
from core.validation.labels import LabelAudit
from core.validation.plan import Plan
from core.validation.rows import prompt_sha256, row_chars
from core.validation.sample import RowSample
from core.validation.second_half import SecondHalf
from tests.gate_kit import chat, save_tokenizer

GOOD = [json.dumps(chat(number, f"answer {number % 70}")) for number in range(300)]
ODD = {
    "blank": "",
    "crlf": GOOD[7] + "\r",
    "padded": "  " + GOOD[8],
    "bom": "\ufeff" + GOOD[9],
    "no json": '{"messages": [',
    "twice": '{"text": "a", "text": "b"}',
    "another spec": '{"text": "prose"}',
    "silent": json.dumps(chat(1, " ")),
    "long": json.dumps(chat(2, "word " * 600)),
    "asked": json.dumps(chat("of the suite")),
    "unicode": json.dumps(chat(3, "Ünïcode \u2028 日本"), ensure_ascii=False),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    return ChatEncoder.from_folder(save_tokenizer(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def small_files_are_shared_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bytes_in, "CHUNK_BYTES", 700)
    monkeypatch.setattr(second_half, "_LEAST_BYTES", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    gc.collect()  # what tests before left open is theirs
    open_before, children_before = len(os.listdir("/proc/self/fd")), set(psutil.Process().children())
    yield
    assert len(os.listdir("/proc/self/fd")) <= open_before
    assert set(psutil.Process().children()) <= children_before, "nobody is left to be waited for"


def inspect(path: Path, encoder: ChatEncoder | None, processes: int, **more: Any) -> tuple[Any, ...]:
    """Everything that an inspection says and draws."""
    suite = SuiteIndex(
        {bytes.fromhex(prompt_sha256(chat("of the suite"))): "suite/1"}, heads=frozenset({"question of the suite"})
    )
    plan = Plan(
        DATASET_SPECS,
        level="quick",
        encoder=encoder,
        max_length=512,
        held_out=0.2,
        held_out_cap=20,
        suites=suite,
        **more,
    )
    with pytest.MonkeyPatch.context() as patch:
        if processes == 1:
            patch.setattr(second_half, "_LEAST_BYTES", 1 << 60)
        made = Inspection(path, Sidecar(), plan)
        result = made.run()
    census = made._census
    drawn = (
        census.draw.chosen(),
        census.sample.numbers,
        census.sample.kept(),
        census.large.tolist(),
        census.duplicates(),
    )
    return result, drawn


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each second process spared the first."""
    rows: list[int] = []
    take = SecondHalf.take

    def spy(self: SecondHalf, row: int, line: int) -> int:
        rows.append(take(self, row, line))
        return rows[-1]

    monkeypatch.setattr(SecondHalf, "take", spy)
    return rows


def write(folder: Path, lines: list[str], end: str = "\n") -> Path:
    path = folder / "x.jsonl"
    path.write_bytes(("\n".join(lines) + end).encode())
    return path


def test_a_good_file_is_read_by_two_and_judged_as_by_one(
    tmp_path: Path, encoder: ChatEncoder, taken: list[int]
) -> None:
    path = write(tmp_path, GOOD)
    assert inspect(path, encoder, 2) == inspect(path, encoder, 1)
    assert len(taken) == 1 and 155 <= taken[0] <= 175


@pytest.mark.parametrize("policy", ["reject_file", "set_aside"])
@pytest.mark.parametrize("place", [20, 155, 180, 299])
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_line_anywhere_has_the_same_words_with_two_processes(
    tmp_path: Path, odd: str, place: int, policy: str
) -> None:
    path = write(tmp_path, [*GOOD[:place], ODD[odd], *GOOD[place:]])
    assert inspect(path, None, 2, bad_rows=policy) == inspect(path, None, 1, bad_rows=policy)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*GOOD[:40], *GOOD[:40], *ODD.values()]), max_size=60),
    st.sampled_from(["\n", "", "\r\n", "\n\n"]),
    st.integers(20, 900),
)
def test_any_mixture_has_the_same_verdict_with_two_processes(
    tmp_path: Path, lines: list[str], end: str, chunk: int
) -> None:
    path = write(tmp_path, lines, end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bytes_in, "CHUNK_BYTES", chunk)
        assert inspect(path, None, 2, bad_rows="set_aside", bad_rows_limit=1.0) == inspect(
            path, None, 1, bad_rows="set_aside", bad_rows_limit=1.0
        )


def test_a_mark_of_byte_order_is_forgiven_at_the_beginning_of_a_file_only(tmp_path: Path) -> None:
    for place in range(140, 156):  # one of them is where the second half begins
        path = write(tmp_path, [*GOOD[:place], ODD["bom"], *GOOD[place:]])
        assert inspect(path, None, 2) == inspect(path, None, 1)
        assert inspect(path, None, 2)[0].code == "bad_json"
    assert inspect(write(tmp_path, [ODD["bom"], *GOOD]), None, 2)[0].ok


def test_rows_of_the_second_half_count_for_the_share_that_must_fit(tmp_path: Path) -> None:
    misfits = [json.dumps({"text": "prose", "number": number}) for number in range(25)]
    path = write(tmp_path, [*GOOD[:60], *misfits, *GOOD[60:]])  # 25 of 325 may be, 25 of about 160 may not
    assert inspect(path, None, 2, bad_rows="set_aside") == inspect(path, None, 1, bad_rows="set_aside")


def test_rows_that_the_second_process_takes_for_another_spec_are_not_taken_over(
    tmp_path: Path, taken: list[int]
) -> None:
    prose = [json.dumps({"text": f"{number} " + "p" * 90}) for number in range(32)]
    path = write(tmp_path, [*GOOD[:125], *prose, *GOOD[125:]])  # the second half begins among them
    assert inspect(path, None, 2, bad_rows="set_aside", bad_rows_limit=1.0) == inspect(
        path, None, 1, bad_rows="set_aside", bad_rows_limit=1.0
    )
    assert taken == [0]


def test_a_second_process_that_stops_early_spares_what_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[int]
) -> None:
    monkeypatch.setattr(second_half, "_MOST_ROWS", 30)
    path = write(tmp_path, GOOD)
    assert inspect(path, None, 2) == inspect(path, None, 1)
    assert 30 <= taken[0] < 60


@pytest.mark.parametrize("end", ["raises", "is killed", "is stopped", "says half"])
def test_a_second_process_that_fails_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[int], end: str
) -> None:
    parent, read, path = os.getpid(), second_half._read, write(tmp_path, GOOD)

    def fail(*args: Any) -> Any:
        assert os.getpid() != parent
        if end == "raises":
            raise MemoryError
        if end == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "is stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        return read(*args)

    monkeypatch.setattr(second_half, "_read", fail)
    monkeypatch.setattr(second_half, "_PATIENCE_S", 0.5)
    if end == "says half":
        encode = msgspec.msgpack.encode
        monkeypatch.setattr(msgspec.msgpack, "encode", lambda found: encode(found)[:-100])
    assert inspect(path, None, 2) == inspect(path, None, 1)
    assert taken == [0]


def test_where_ended_children_vanish_by_themselves_nothing_is_missed(tmp_path: Path, taken: list[int]) -> None:
    path = write(tmp_path, GOOD)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert inspect(path, None, 2) == inspect(path, None, 1)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert taken[0] > 100


def test_a_file_that_is_written_to_while_two_read_it_gets_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, take = write(tmp_path, GOOD), SecondHalf.take

    def write_between(self: SecondHalf, row: int, line: int) -> int:
        found = take(self, row, line)
        with path.open("r+b") as file:
            file.seek(-20, os.SEEK_END)
            file.write(b"garbage")
        return found

    monkeypatch.setattr(SecondHalf, "take", write_between)
    with pytest.raises(OSError, match="changed while it was read"):
        inspect(path, None, 2)


def test_no_more_rows_are_encoded_at_once_than_their_length_allows(
    tmp_path: Path, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[int] = []
    start = LabelAudit.start

    def spy(self: LabelAudit, rows: Sequence[Any], pool: Any) -> Any:
        at_once.append(sum(map(row_chars, rows)))
        return start(self, rows, pool)

    monkeypatch.setattr(LabelAudit, "start", spy)
    monkeypatch.setattr(labels, "_ENCODED_CHARS", 2_000)
    inspect(write(tmp_path, GOOD), encoder, 1)
    assert len(at_once) > 2
    assert max(at_once) < 2_200


@given(st.lists(st.integers(0, 600), min_size=1_200, max_size=1_400), st.integers(1, 900))
@settings(max_examples=20, deadline=None)
def test_equal_rows_are_drawn_alike_however_many_are_offered_at_once(rows: list[int], size: int) -> None:
    digests = [sha256(str(row).encode()).digest() for row in rows]
    whole, pieces = RowSample(0), RowSample(0)
    whole.offer(range(len(rows)), b"".join(digests))
    for first in range(0, len(rows), size):
        pieces.offer(range(first, min(first + size, len(rows))), b"".join(digests[first : first + size]))
    assert whole.numbers == pieces.numbers


def test_where_no_process_is_to_be_had_one_reads_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[int]
) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    path = write(tmp_path, GOOD)
    monkeypatch.setattr(os, "fork", refuse)
    assert inspect(path, None, 2) == inspect(path, None, 1)
    assert taken == []


def test_small_packed_and_single_core_cases_are_read_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    assert second_half._start(path)
    assert not second_half._start(write(tmp_path, ["x" * 500], ""))  # no line begins in the second half
    assert not second_half._start(path.rename(tmp_path / "x.json"))
    path = write(tmp_path, GOOD)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert not second_half._start(path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(second_half, "_LEAST_BYTES", 1 << 30)
    assert not second_half._start(path)


def test_a_file_without_its_last_line_end_is_hashed_whole(tmp_path: Path, taken: list[int]) -> None:
    path = write(tmp_path, GOOD, "")
    one, two = inspect(path, None, 1)[0], inspect(path, None, 2)[0]
    assert one.stats["sha256"] == two.stats["sha256"] and taken[0] > 100


_READER = """
import os, sys, time
from pathlib import Path
from core.validation import DATASET_SPECS, inspection, second_half
from core.validation.labels import LabelAudit
from core.validation.plan import Plan
second_half._LEAST_BYTES = 1
os.sched_getaffinity = lambda _: {0, 1}
with second_half.second_half(Path(sys.argv[1]), Plan(DATASET_SPECS, level="quick"), list(DATASET_SPECS.values())):
    print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
    time.sleep(600)
"""


def test_the_second_process_ends_when_the_first_is_killed_before_it_listened(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    path = tmp_path / "large.jsonl"
    path.write_text(
        "".join(json.dumps(chat(number, "fine")) + "\n" for number in range(20_000))
    )  # more than a pipe holds
    argv = [sys.executable, "-c", _READER, str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            child = int(reader.stdout.readline())
            wait_until(lambda: "pipe" in Path(f"/proc/{child}/wchan").read_text())
        finally:
            reader.kill()
    wait_until(lambda: not _lives(child))


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
