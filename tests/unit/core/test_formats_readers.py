"""Every format gives the same rows, says what a file really is, and stays within its bounds."""

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from core.errors import MissingToolError
from core.formats import FormatError, RowProblem, check_content, file_stats, open_rows
from core.formats.rows import MAX_ROW_BYTES
from core.validation import DATASET_SPECS, SpecValidator, ValidationResult

ROWS: list[dict[str, Any]] = [
    {"prompt": f"q {i}, \"quoted\"\nline", "completion": f"a {i} ⓪①, é"} for i in range(700)
]  # fmt: skip
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def csv_text(delimiter: str) -> bytes:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = ["prompt" + delimiter + "completion"]
    lines += [cell(row["prompt"]) + delimiter + cell(row["completion"]) for row in ROWS]
    return ("\n".join(lines) + "\n").encode()


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"x{suffix}"
    table = pa.Table.from_pylist(ROWS)
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=100)
    elif suffix == ".feather":
        pyarrow.feather.write_feather(table, path)
    elif suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_bytes(
            {
                ".jsonl": JSONL,
                ".jsonl.gz": gzip.compress(JSONL[:50_000]) + gzip.compress(JSONL[50_000:]),
                ".jsonl.zst": zstandard.compress(JSONL[:50_000]) + zstandard.compress(JSONL[50_000:]),
                ".json": json.dumps(ROWS, indent=1).encode(),
                ".csv": csv_text(","),
                ".tsv": csv_text("\t"),
            }[suffix]
        )
    return path


def values(path: Path) -> list[Any]:
    return [value for batch in open_rows(path).batches() for value in batch.values]


def judged(path: Path, spec: str | None = None) -> ValidationResult:
    return SpecValidator(DATASET_SPECS).validate_job({"dataset": path, "spec": spec}, None)


FORMATS = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".tsv", ".parquet", ".feather", ".arrow"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows_in_the_same_order(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    check_content(path)
    assert values(path) == ROWS
    reader = open_rows(path)
    assert [(row, value) for row, _line, value in reader.some({0, 350, 699})] == [(i, ROWS[i]) for i in (0, 350, 699)]
    assert reader.line_bound() >= 700


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_in_any_format_passes_the_gate_with_its_own_hash(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    spec = SpecValidator(DATASET_SPECS)
    result = spec.validate_job({"dataset": path, "spec": "prompt_completion_v1"}, None)
    assert result.ok, result.message
    assert result.stats["rows"] == 700
    assert result.stats["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet", ".feather"])
def test_packed_bytes_under_a_text_suffix_are_named_for_what_they_are(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    wrong = tmp_path / "wrong.jsonl"
    path.rename(wrong)
    result = judged(wrong)
    assert result.code == "bad_encoding"
    assert result.message.startswith("the file is ")


@pytest.mark.parametrize(
    "data", [b"\x80\x04\x95pickle", b"PK\x03\x04zip", b"\xd0\xcf\x11\xe0office", b"%PDF-1.7", b"\x93NUMPY"]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json", ".parquet", ".jsonl.gz"])
def test_pickles_archives_and_office_files_are_refused_under_every_suffix(
    tmp_path: Path, data: bytes, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    assert judged(path).code == "bad_encoding"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet", ".feather", ".arrow", ".json"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_cut_file_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = write(tmp_path, suffix)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    result = judged(path)
    assert not result.ok
    assert result.code in ("bad_encoding", "bad_json"), result.message
    assert result.stats["sha256"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet", ".feather"])
def test_a_flipped_byte_never_passes_as_other_rows_or_raises(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    whole = path.read_bytes()
    for at in range(50, len(whole), len(whole) // 25):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert judged(path).code != "unreadable"


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_an_archive_bomb_is_refused_early_and_in_little_memory(tmp_path: Path, pack: Any) -> None:
    packed = pack(b"\n" * (400 << 20))
    path = tmp_path / ("x.jsonl.gz" if pack is gzip.compress else "x.jsonl.zst")
    path.write_bytes(packed)
    del packed
    tracemalloc.start()
    result = judged(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (result.ok, result.code) == (False, "too_large")
    assert "bomb" in result.message
    assert peak < 64 << 20
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,a\n1,2\n", "repeated"),
        ("a,\n1,2\n", "empty"),
        ('a,b\n1,"2\n', "CSV"),
        ('a,b\n"1"x,2\n', "CSV"),
    ],
)
def test_odd_csv_is_refused_as_a_whole(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    result = judged(path)
    assert result.code == "bad_json" and words in result.message


def test_a_csv_row_of_another_width_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt,completion\n"two\nlines",b\nonly one\nc,d\n')
    result = SpecValidator(DATASET_SPECS).validate_job({"dataset": path, "spec": "prompt_completion_v1"}, None)
    assert (result.code, result.line) == ("bad_json", 4)


@pytest.mark.parametrize(
    "text", ['{"a":1}', '[{"a":1}', '[{"a":1},]x', "[1,,2]", '[{"a":1} {"a":2}]', "[" * 100_000, '[{"a":1}]]', ""]
)
def test_what_is_no_json_array_is_refused_and_never_raises(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert not judged(path).ok


@pytest.mark.parametrize("end", [",]", ",\n\n]\n"])
def test_an_array_with_a_comma_before_its_end_is_refused_with_the_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"text": "a"},\n{"text": "b"}' + end)
    with pytest.raises(FormatError) as refused:
        values(path)
    assert refused.value.problem.fix == "remove the trailing comma"
    assert refused.value.line == 2 + end[:-1].count("\n")


def test_what_stops_the_reading_of_a_whole_file_stands_in_the_verdict_with_its_line(tmp_path: Path) -> None:
    spoilt = {
        "quote.csv": (b'prompt,completion\na,b\n"c"x,d\n', 3),
        "header.csv": (b"\nprompt,prompt\na,b\n", 2),
        "latin1.csv": (b"\xef\xbb\xbfprompt,completion\na,b\nc,caf\xe9\n", 3),
        "latin1.txt": (b"a\n\n" + b"x" * 65_533 + b"\xc3\xe9\n", 3),
        "comma.json": (b'[{"text": "a"},\n\n,]', 3),
        "cr.csv": (b"prompt,completion\ra,b\r", 1),
        "cut.json": (b'[{"text": "a"},\n{"text": "b', 2),
        "no_array.json": (b'\n{"text": "a"}', 2),
        "after.json": (b'[{"text": "a"}\n] x', 2),
    }
    for name, (content, line) in spoilt.items():
        path = tmp_path / name
        path.write_bytes(content)
        result = SpecValidator(DATASET_SPECS).validate_job({"dataset": path, "spec": "prompt_completion_v1"}, None)
        assert (result.ok, result.line) == (False, line), name
        assert ("CR alone" in result.message) == (name == "cr.csv")
        assert result.message.startswith(f"line {line}: ") and result.message.count("line ") <= 2, name
        if name.startswith("latin1"):
            at = int(result.message.rpartition("byte ")[2].split(" ")[0])
            assert content[at : at + 1] in (b"\xe9", b"\xc3"), name


def test_an_array_that_was_cut_off_is_called_a_cut_transfer(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    whole = '[{"text": "a"}, {"text": "b", "id": tr'
    for end in range(17, len(whole) + 1):
        path.write_text(whole[:end])
        result = judged(path)
        assert not result.ok and ("was the transfer cut?" in result.message or "incomplete" in result.message), end


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused_in_columns_as_in_lines(tmp_path: Path, suffix: str, number: float) -> None:
    path = tmp_path / f"x{suffix}"
    table = pa.table({"text": ["null", "b"], "metadata": [{"s": [1.0, None]}, {"s": [2.0, number]}]})
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    good, bad = values(path)
    assert good["metadata"] == {"s": [1.0, None]}
    assert isinstance(bad, RowProblem) and (bad.code, bad.field) == ("bad_json", "$.metadata.s[1]")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_two_columns_of_one_name_are_refused_not_one_of_them_dropped(tmp_path: Path, suffix: str) -> None:
    path, column = tmp_path / f"x{suffix}", pa.array(["a", "b"])
    table = pa.Table.from_arrays([column, column], names=["text", "text"])
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    with pytest.raises(FormatError, match="column 'text' stands twice"):
        values(path)


def test_elements_of_an_array_are_held_to_the_same_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[\n{"text":"a"},\n{"text":"b","text":"c"},\n{"text":NaN}\n]')
    found = values(path)
    assert found[0] == {"text": "a"}
    assert all(isinstance(value, RowProblem) for value in found[1:])


def test_plain_text_is_split_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n\none\ntwo\n\n \nthree\r\n", newline="")
    assert values(path) == [{"text": "one\ntwo"}, {"text": "three"}]
    assert judged(path, "completion_v1").ok


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json"])
def test_a_row_without_end_is_refused_while_it_streams(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    with path.open("w") as file:
        file.write('["' if suffix == ".json" else "a\n")
        for _ in range((MAX_ROW_BYTES >> 20) + 4):
            file.write("x" * (1 << 20))
    with pytest.raises(FormatError):
        values(path)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".txt"])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"a,b\n1,caf\xe9\n")
    assert judged(path).code in ("bad_encoding", "bad_json")


def test_values_that_json_cannot_hold_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pa.table({"text": [b"bytes"]}), path)
    found = values(path)
    assert isinstance(found[0], RowProblem) and "JSON" in found[0].message


def test_the_footer_tells_rows_and_columns_of_parquet(tmp_path: Path) -> None:
    stats = file_stats(write(tmp_path, ".parquet"))
    assert (stats["rows"], stats["columns"]) == (700, ["prompt", "completion"])
    assert file_stats(write(tmp_path, ".csv"))["columns"] == ["prompt", "completion"]


def test_without_pyarrow_the_error_says_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ".parquet")

    def missing(_name: str) -> object:
        raise ImportError

    monkeypatch.setattr("core.formats.columns.importlib.import_module", missing)
    with pytest.raises(MissingToolError, match="pip install"):
        values(path)


@pytest.mark.parametrize(
    ("name", "header", "words"),
    [("x.csv", "a;b", "not by ','"), ("x.csv", "a\tb", "NAME.tsv"), ("x.tsv", "a,b", r"not by '\\t'")],
)
def test_a_table_with_another_separator_says_which(tmp_path: Path, name: str, header: str, words: str) -> None:
    (tmp_path / name).write_text(f"{header}\n1\n")
    with pytest.raises(FormatError) as caught:
        list(open_rows(tmp_path / name).batches())
    assert words in f"{caught.value.message} {caught.value.fix}".replace("\\t", r"\\t")


def test_one_column_whose_name_has_no_separator_in_it_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text\none\n")
    assert [batch.values for batch in open_rows(tmp_path / "x.csv").batches()] == [[{"text": "one"}]]


def test_an_array_under_jsonl_is_not_taken_for_a_broken_transfer(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('[{"text": "a"}]')
    [batch] = open_rows(tmp_path / "x.jsonl").batches()
    problem = batch.values[0]
    assert isinstance(problem, RowProblem)
    assert "transfer" not in problem.message and "an array, not an object" in problem.message
    assert "NAME.json" in (problem.fix or "")


@pytest.mark.parametrize(("suffix", "content"), [(".parquet", b"{}"), (".jsonl.gz", b"\x80\x04x"), (".feather", b"x")])
def test_content_that_is_not_what_the_name_says_has_a_fix(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(FormatError) as caught:
        check_content(tmp_path / f"x{suffix}")
    assert caught.value.fix.startswith("give it the suffix of what it is")


@pytest.mark.parametrize("header", ['"\n"', '"a\nb","a\nb"', '"\x1b[2J",""'])
def test_names_of_a_header_are_shown_on_one_line_whatever_they_hold(tmp_path: Path, header: str) -> None:
    (tmp_path / "x.csv").write_text(header + "\n1,2\n")
    with pytest.raises(FormatError) as raised:
        list(open_rows(tmp_path / "x.csv").batches())
    assert raised.value.problem.message.isprintable() and "empty or repeated" in raised.value.problem.message
