"""Columnar files stay within their memory whatever they unpack to, and every place in a verdict is the true one."""

import gzip
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from core.formats import FormatError, RowProblem, check_content, file_stats, open_rows
from core.formats.memory import memory_bound
from core.formats.rows import MAX_ROW_BYTES

LONG = "word and more words " * 45_000  # 900 KB


def values(path: Path) -> list[Any]:
    return [value for batch in open_rows(path).batches() for value in batch.values]


def repeated(text: str, times: int) -> Any:  # pyarrow has no types
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([text]))


def zeros(path: Path) -> None:
    numbers = pa.ListArray.from_arrays(pa.array([0, 60_000_000], pa.int32()), pa.array(np.zeros(60_000_000, np.int8)))
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "x": numbers}), path, compression="zstd")


def turns(path: Path) -> None:
    chat = pa.table({"messages": [[{"role": "user", "content": LONG}] * 300] * 2})
    pyarrow.parquet.write_table(chat, path)


def packed(path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path, pa.schema([("text", pa.string())]), options=options) as file:
        file.write_batch(pa.record_batch({"text": ["a" * 1000] * 300_000}))


def nothing(path: Path) -> None:
    holes = pa.ListArray.from_arrays(pa.array([0, 2**31 - 2], pa.int32()), pa.nulls(2**31 - 2))
    with pa.ipc.new_file(path, pa.schema([("text", pa.string()), ("x", holes.type)])) as file:
        file.write_batch(pa.record_batch([pa.array(["a"]), holes], names=["text", "x"]))


def plain(path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"text": [LONG] * 400}), path)


def dictionary(path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"text": repeated(LONG, 20_000)}), path)


def views(path: Path) -> None:
    with pa.ipc.new_file(path, pa.schema([("text", pa.string_view())])) as file:
        one = pa.array([LONG], pa.string_view())
        entry = one.buffers()[1].to_pybytes()[:16]
        many = pa.Array.from_buffers(pa.string_view(), 20_000, [None, pa.py_buffer(entry * 20_000), one.buffers()[2]])
        file.write_batch(pa.record_batch([many], names=["text"]))


_READ = """
import json, re, sys
from pathlib import Path
from core.formats import FormatError, columns, open_rows
columns._MOST_BYTES = int(sys.argv[2]) << 20
rows, problem = [], None
try:
    for batch in open_rows(Path(sys.argv[1])).batches():
        rows += [len(value["text"]) for value in batch.values]
except FormatError as error:
    problem = {"code": error.problem.code, "words": error.problem.message, "fix": error.problem.fix}
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({"rows": rows, "problem": problem, "peak": peak}))
"""


def read_alone(path: Path, most_mib: int = 128) -> dict[str, Any]:
    """What a fresh process reads, whose pyarrow was loaded by us; its peak is in KB."""
    command = [sys.executable, "-c", _READ, str(path), str(most_mib)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


@pytest.mark.parametrize("make", [zeros, turns, packed, nothing, plain, dictionary, views])
def test_what_unpacks_to_gigabytes_is_refused_in_little_memory(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / ("x.arrow" if make in (packed, nothing, views) else "x.parquet")
    make(path)
    found = read_alone(path)
    assert found["problem"]["code"] == "too_large"
    assert found["problem"]["fix"]
    assert found["peak"] < 260_000


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_page_or_batch_that_does_not_fit_is_refused_with_what_to_write(tmp_path: Path, suffix: str) -> None:
    path, rng = tmp_path / f"x{suffix}", np.random.default_rng(0)
    table = pa.table({"text": [rng.bytes(120_000).hex() for _ in range(300)]})

    def write(rows: int) -> dict[str, Any]:
        if suffix == ".parquet":
            pyarrow.parquet.write_table(table, path, row_group_size=rows)
        else:
            pyarrow.feather.write_feather(table, path, chunksize=rows)
        return read_alone(path, 32)

    problem = write(300)["problem"]
    assert problem["words"].endswith(" 1 needs more than 32 MiB to be read")
    assert "write smaller" in problem["fix"] and "(table, NAME, " in problem["fix"]
    assert write(16)["rows"] == [240_000] * 300


def test_rows_that_repeat_a_long_text_are_read_one_by_one_where_256_do_not_fit(tmp_path: Path) -> None:
    texts = ["short"] * 300 + [LONG, "other"] * 30
    pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / "x.parquet")
    assert read_alone(tmp_path / "x.parquet", 16)["rows"] == [len(text) for text in texts]


def test_a_row_over_the_limit_is_refused_alone_with_its_number(tmp_path: Path) -> None:
    path, rng = tmp_path / "x.parquet", np.random.default_rng(0)
    huge = rng.bytes(MAX_ROW_BYTES // 2 + 100).hex()
    pyarrow.parquet.write_table(pa.table({"text": ["a", huge, "b"]}), path)
    first, second, third = values(path)
    assert (first, third) == ({"text": "a"}, {"text": "b"})
    assert isinstance(second, RowProblem) and (second.code, second.fix) == ("too_large", "split the row")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".txt"])
def test_few_long_rows_stand_in_memory_at_once(tmp_path: Path, suffix: str) -> None:
    path, rng = tmp_path / f"x{suffix}", np.random.default_rng(0)
    texts = [rng.bytes(500_000).hex() for _ in range(12)]
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table({"text": texts}), path)
    elif suffix == ".json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    else:
        path.write_text("text\n" * (suffix == ".csv") + ("\n" if suffix == ".csv" else "\n\n").join(texts) + "\n")
    batches = [batch.values for batch in open_rows(path).batches()]
    assert [value for batch in batches for value in batch] == [{"text": text} for text in texts]
    assert max(map(len, batches)) <= 6


def test_columns_of_every_kind_are_measured_and_read(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    rows: list[dict[str, Any]] = [
        {"text": f"r{i}", "list": [1, i], "deep": {"a": [{"b": "c" * i}]}, "pair": [i, 2], "named": "x" * (i % 3)}
        for i in range(600)
    ]
    table = pa.Table.from_pylist(rows)
    named = table["named"].combine_chunks()
    table = table.set_column(4, "named", pa.chunked_array([named.dictionary_encode()]))
    table = table.set_column(3, "pair", table["pair"].cast(pa.list_(pa.int64(), 2)))
    table = table.set_column(0, "text", table["text"].cast(pa.string_view()))
    table = table.append_column("map", pa.array([[("k", i)] for i in range(600)], pa.map_(pa.string(), pa.int64())))
    pyarrow.feather.write_feather(table, path, compression="uncompressed")
    assert values(path) == [{**row, "map": [["k", i]]} for i, row in enumerate(rows)]


def test_a_column_that_may_repeat_itself_without_end_is_refused_by_its_type(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    batch = pa.record_batch({"text": pa.array(["a"]), "x": pa.array([[1]], pa.list_view(pa.int8()))})
    with pa.ipc.new_file(path, batch.schema) as file:
        file.write_batch(batch)
    with pytest.raises(FormatError, match="list_view") as refused:
        values(path)
    assert "cast" in refused.value.fix


def test_the_bound_of_memory_holds_and_is_gone_afterwards() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(MemoryError), memory_bound(16 << 20):
        bytearray(64 << 20)
    with memory_bound(64 << 20):
        assert len(bytearray(16 << 20))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytearray(64 << 20))


def test_a_footer_is_told_without_reading_the_rows_it_promises(tmp_path: Path) -> None:
    dictionary(tmp_path / "x.parquet")
    assert file_stats(tmp_path / "x.parquet")["rows"] == 20_000


ROWS = b'{"text": "a"}\n{"text": "b"}\n'


def test_zstd_may_begin_with_a_frame_that_is_skipped_and_gzip_may_be_padded_with_zeros(tmp_path: Path) -> None:
    def skipped(size: int, low: int) -> bytes:
        return bytes([low]) + b"\x2a\x4d\x18" + size.to_bytes(4, "little") + b"s" * size

    one, two = ROWS[:14], ROWS[14:]
    packs = {
        "x.jsonl.zst": skipped(4, 0x50) + zstandard.compress(one) + skipped(2_000, 0x5F) + zstandard.compress(two),
        "y.jsonl.gz": gzip.compress(one) + bytes(700) + gzip.compress(two) + bytes(200_000),
    }
    for name, data in packs.items():
        (tmp_path / name).write_bytes(data)
        check_content(tmp_path / name)
        assert values(tmp_path / name) == [{"text": "a"}, {"text": "b"}], name


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_an_archive_that_was_cut_off_says_what_to_do(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes((gzip.compress if suffix == ".jsonl.gz" else zstandard.compress)(ROWS * 50)[:-6])
    with pytest.raises(FormatError, match="incomplete") as refused:
        values(path)
    assert refused.value.fix == "copy the whole file again"


@pytest.mark.parametrize(
    ("element", "line", "column"),
    [('{"text": "b",\n  "n": NaN}', 5, 8), ('{"text":\n "b",\n "text": 1}', 6, 2), ('{"text": 1, "n": NaN}', 4, 20)],
)
def test_what_an_array_holds_is_refused_where_it_stands(tmp_path: Path, element: str, line: int, column: int) -> None:
    path = tmp_path / "x.json"
    path.write_text('[\n  {"text":\n   "a"},\n  ' + element + ",\n{}]")
    found = [pair for batch in open_rows(path).batches() for pair in zip(batch.lines, batch.values, strict=True)]
    assert found[0] == (2, {"text": "a"}) and found[2][1] == {}
    at, problem = found[1]
    assert isinstance(problem, RowProblem) and (at, problem.column) == (line, column)
    assert problem.fix


@pytest.mark.parametrize("rows", [3, 800_000])
def test_a_quote_that_is_never_closed_is_refused_at_the_row_where_it_opens(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,more\n" + "a,b\n" * 10 + 'c,"d\n' + "some words,e\n" * rows)
    with pytest.raises(FormatError, match=r"quote.*closed") as refused:
        values(path)
    assert refused.value.line == 12
    assert "close" in refused.value.fix
