import errno
import os
from pathlib import Path

import pytest

from core.atomic import parse_json, read_json, rename_durable, storage_error, write_bytes, write_json
from core.errors import JsonError, StorageError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "state.json"
    write_bytes(target, b"old")

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="free space"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_reader_never_sees_a_half_written_document(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    for number in range(50):
        write_json(target, {"n": number, "fill": "x" * 10_000})
        assert read_json(target)["n"] == number
    assert os.listdir(tmp_path) == ["state.json"]


def test_rename_never_replaces_what_stands_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(StorageError, match="exists"):
        rename_durable(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    assert (tmp_path / "a").read_text() == "a"


def test_rename_of_a_vanished_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        rename_durable(tmp_path / "gone", tmp_path / "b")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_json_is_read_strictly(data: bytes, says: str) -> None:
    with pytest.raises(JsonError, match=says):
        parse_json(data, "x.json")


def test_a_json_error_names_line_and_column() -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(b'{"a": 1,\n "b": }', "x.json")
    assert caught.value.where == "x.json:2:7"


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_every_storage_error_names_the_path_and_a_fix(tmp_path: Path) -> None:
    error = storage_error(OSError(errno.EXDEV, "Invalid cross-device link"), tmp_path)
    assert error.where == str(tmp_path)
    assert "one filesystem" in error.fix
