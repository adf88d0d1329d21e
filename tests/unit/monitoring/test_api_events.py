"""The event stream loses no line, repeats none, and says which subject has news."""

import json
import os
import threading
from collections.abc import Iterator
from itertools import islice

from core.paths import Workspace
from monitoring.api.events import Changes, EventLog, Streams
from sample_root import SampleRoot


def numbers(events: list[tuple[str, str]]) -> list[int]:
    return [json.loads(text)["number"] for _, text in events]


def append(workspace: Workspace, *lines: str) -> None:
    with workspace.status_file("events.jsonl").open("a") as file:
        file.write("".join(lines))


def line(number: int) -> str:
    return json.dumps({"number": number, "message": "käse\u2028\r\n"}) + "\n"


def test_a_reader_that_comes_back_goes_on_where_it_was(workspace: Workspace) -> None:
    path = workspace.status_file("events.jsonl")
    append(workspace, line(1), line(2))
    first = EventLog(path, None).read()
    append(workspace, line(3))
    assert numbers(first) == [1, 2]
    assert numbers(EventLog(path, first[0][0]).read()) == [2, 3]
    assert numbers(EventLog(path, first[1][0]).read()) == [3]


def test_an_unfinished_line_is_waited_for(workspace: Workspace) -> None:
    log = EventLog(workspace.status_file("events.jsonl"), None)
    append(workspace, line(1), line(2)[:9])
    assert numbers(log.read()) == [1]
    append(workspace, line(2)[9:])
    assert numbers(log.read()) == [2]


def test_a_damaged_line_is_left_out_and_an_event_is_always_one_line(workspace: Workspace) -> None:
    append(workspace, "{damaged\n", line(1), "\n")
    ((_, text),) = EventLog(workspace.status_file("events.jsonl"), None).read()
    assert text.isascii()
    assert "\n" not in text


def test_rotation_and_truncation_start_over(workspace: Workspace) -> None:
    path = workspace.status_file("events.jsonl")
    log = EventLog(path, None)
    append(workspace, line(1))
    log.read()
    os.rename(path, path.with_suffix(".old"))
    assert log.read() == []
    append(workspace, line(2))
    assert numbers(log.read()) == [2]
    path.write_text("")
    assert log.read() == []
    append(workspace, line(3))
    assert numbers(log.read()) == [3]


def test_a_new_reader_is_told_only_the_end_of_a_long_log(workspace: Workspace) -> None:
    append(workspace, *(line(number) for number in range(20_000)))
    told = numbers(EventLog(workspace.status_file("events.jsonl"), None).read())
    assert told[-1] == 19_999
    assert len(told) < 1000
    assert told == list(range(told[0], 20_000))


def test_nonsense_as_last_event_id_is_a_new_reader(workspace: Workspace) -> None:
    append(workspace, line(1))
    for nonsense in ("", "x", "1-", "-1-5", "1-99999999999999999999999", "²-1"):
        assert numbers(EventLog(workspace.status_file("events.jsonl"), nonsense).read()) == [1]


def test_changes_name_the_subject_that_has_news(sample: SampleRoot) -> None:
    changes = Changes(sample.ws, "main")
    assert changes.read() == []
    sample.leaderboard(None)
    assert changes.read() == ["leaderboard"]
    sample.job("normal")
    assert changes.read() == ["jobs", "queue"]
    sample.checkpoint(900)
    assert changes.read() == ["checkpoints"]


def pieces(streams: Streams, left: threading.Event) -> Iterator[bytes]:
    return iter(streams.open(None, left.is_set))


def test_a_stream_ends_when_its_client_left_or_the_server_stops(workspace: Workspace) -> None:
    left = threading.Event()
    append(workspace, line(1))
    streams = Streams(workspace, "main")
    stream = pieces(streams, left)
    opened, news = islice(stream, 2)
    assert opened.startswith(b"retry:")
    assert b"event: event\ndata: {" in news
    left.set()
    assert list(stream) == []
    left.clear()
    other = pieces(streams, left)
    next(other)
    streams.end()
    assert list(other) == []
