"""JSON Lines are read in blocks of bounded size with the right numbers, whatever the line lengths."""

import hashlib
import tracemalloc
from pathlib import Path

import pytest

from core.errors import DataError
from core.formats import JsonlReader, RowProblem, open_rows
from core.formats.rows import MAX_ROW_BYTES


def read(path: Path) -> list[tuple[int, int, object]]:
    reader = JsonlReader(path)
    found: list[tuple[int, int, object]] = []
    for batch in reader.batches():
        found += zip(range(batch.first, batch.first + len(batch.lines)), batch.lines, batch.values, strict=True)
    return found


@pytest.mark.parametrize("length", [1, 100, 65_520, 65_536, 65_537, 200_000])
def test_rows_across_block_borders_come_whole_and_in_order(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.jsonl"
    data = b"".join(b'{"n":%d,"x":"%s"}\n' % (i, b"a" * length) for i in range(20))
    path.write_bytes(data)
    rows = read(path)
    assert [(number, line) for number, line, _ in rows] == [(i, i + 1) for i in range(20)]
    assert all(row == {"n": i, "x": "a" * length} for i, (_, _, row) in enumerate(rows))
    reader = JsonlReader(path)
    list(reader.batches())
    assert reader.notes.sha256 == hashlib.sha256(data).hexdigest()
    assert (reader.notes.rows, reader.notes.size_bytes) == (20, len(data))


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\n{"a":1}\r\n \t\r\n{"a":2}\n\n\n{"a":3}')
    assert read(path) == [(0, 2, {"a": 1}), (1, 4, {"a": 2}), (2, 7, {"a": 3})]
    reader = JsonlReader(path)
    assert list(reader.some({1})) == [(1, 4, {"a": 2})]
    assert reader.line_bound() >= 3


def test_a_line_over_the_cap_is_refused_without_being_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a":1}\n{"a":"')
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"a":2}\n')
    tracemalloc.start()
    rows = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_ROW_BYTES
    assert [(line, row.code if isinstance(row, RowProblem) else row) for _, line, row in rows] == [
        (1, {"a": 1}),
        (2, "too_large"),
        (3, {"a": 2}),
    ]


def test_an_overlong_last_line_without_an_end_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a":1}\n' + b"x" * (MAX_ROW_BYTES + 70_000))
    assert [row.code for _, _, row in read(path) if isinstance(row, RowProblem)] == ["too_large"]


def test_a_file_of_many_large_rows_stays_small_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        for _ in range(60):
            file.write(b'{"a":"' + b"y" * (1 << 20) + b'"}\n')
    reader = JsonlReader(path)
    tracemalloc.start()
    rows = sum(len(batch.lines) for batch in reader.batches())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == 60
    assert peak < 24 << 20


def test_a_suffix_that_nobody_knows_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no reader"):
        open_rows(tmp_path / "x.pkl")
