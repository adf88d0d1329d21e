import os
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.paths import LANES, Workspace, display_name, find_root


def test_the_root_is_the_nearest_parent_with_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert find_root(env={}) == tmp_path


def test_root_option_beats_the_variable_and_the_variable_beats_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("option", "variable", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "folder")
    env = {"DROPFORGE_ROOT": str(tmp_path / "variable")}
    assert find_root(tmp_path / "option", env) == tmp_path / "option"
    assert find_root(None, env) == tmp_path / "variable"
    assert find_root(None, {}) == tmp_path / "folder"


def test_a_folder_without_config_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dropforge init"):
        find_root(tmp_path)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain.jsonl", "plain.jsonl"),
        (b"caf\xc3\xa9.jsonl", "café.jsonl"),
        (b"bad\xff.jsonl", "bad\\xff.jsonl"),
        (b"new\nline\x1b[31m", "new\\x0aline\\x1b[31m"),
        ("rtl\u202egpj.jsonl".encode(), "rtl\\u202egpj.jsonl"),
        ("zero\u200bwidth".encode(), "zero\\u200bwidth"),
        ("tag\U000e0041".encode(), "tag\\U000e0041"),
    ],
)
def test_untrusted_names_are_shown_on_one_line_of_valid_utf8(raw: bytes, shown: str) -> None:
    assert display_name(os.fsdecode(raw)) == shown
    display_name(raw).encode()


def test_an_unknown_lane_is_no_path(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="no lane"):
        workspace.lane("../done")
    assert all(workspace.lane(lane).is_dir() for lane in LANES)
