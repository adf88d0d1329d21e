import json

import pytest

from core.control import MAX_CONTROL_BYTES, command_of, parse_control, write_command, write_request
from core.errors import ConfigError
from core.paths import Workspace


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("pause", "pause"),
        ("PAUSE", "pause"),
        ("retry-abc.json", "retry"),
        ("Promote-1.json", "promote"),
        ("pause.json", None),
        ("retry", None),
        ("delete-x.json", None),
        ("..", None),
    ],
)
def test_only_known_names_are_commands(name: str, command: str | None) -> None:
    assert command_of(name) == command


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        (b"", {}),
        (b"  lunch \n", {"reason": "lunch"}),
        (b'{"reason": "x", "release_gpu": true}', {"reason": "x", "release_gpu": True}),
        (b"\xff\x00", {"reason": "\\xff\x00"}),
    ],
)
def test_a_command_may_be_empty_plain_text_or_json(content: bytes, arguments: dict[str, object]) -> None:
    assert parse_control("pause", content).arguments == arguments


@pytest.mark.parametrize("content", [b"", b"abc", b"[]", b"{}", b'{"id": 5}', b'{"id": "a", "id": "b"}', b"{"])
def test_a_request_without_a_proper_id_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_control("retry-x.json", content)


def test_a_long_control_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="longer than 4096"):
        parse_control("pause", b"x" * (MAX_CONTROL_BYTES + 1))


def test_what_the_cli_writes_is_what_the_daemon_reads(workspace: Workspace) -> None:
    write_command(workspace, "pause", reason="lunch", release_gpu=True)
    read = parse_control("pause", (workspace.control_dir / "pause").read_bytes())
    assert read.arguments == {"reason": "lunch", "release_gpu": True}
    name = write_request(workspace, "rewind", id="5-abc")
    assert json.loads((workspace.control_dir / name).read_text()) == {"id": "5-abc"}
    assert command_of(name) == "rewind"


def test_touch_and_a_bare_command_are_the_same(workspace: Workspace) -> None:
    write_command(workspace, "stop")
    assert (workspace.control_dir / "stop").read_bytes() == b""
