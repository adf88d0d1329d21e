"""rsync and ssh are called with lists that nothing foreign can bend, and their failures are told apart."""

import json
import os
from pathlib import Path

import pytest

from core.checkpoints import Checkpoint
from core.errors import ConfigError, MissingToolError, StorageError
from core.hosts import Host
from core.paths import Workspace
from core.settings import load_settings
from inference import publish
from inference.canaries import canaries_of
from inference.transport import HostKeyError, Target, TransferError, require_tools, rsync_argv, send, ssh_command

HOST = Host("serve", "serve", "10.0.0.2", "inference", "drop", 2222, "/srv/served", "/k/id", "/k/known", {})


def shim(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a fake rsync first on the path."""
    folder.mkdir()
    (folder / "rsync").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_everything_foreign_stands_after_the_double_dash(tmp_path: Path) -> None:
    argv = rsync_argv(tmp_path, Target("/srv/served", HOST), "5-aaaaaaaaaaaa", ["current"])
    assert argv[-3:] == ["--", f"{tmp_path}/", "drop@10.0.0.2:/srv/served/incoming/5-aaaaaaaaaaaa/"]
    for needed in ("-s", "--no-links", "--checksum", "--partial-dir=.rsync-partial", "--fsync", "--files-from=-"):
        assert needed in argv
    assert "--inplace" not in argv
    assert "--link-dest=../../current" in argv


def test_an_ipv6_host_is_bracketed() -> None:
    host = Host("s", "s", "fe80::1", "inference", None, 22, None, None, None, {})
    assert Target("/srv", host).address("x") == "[fe80::1]:/srv/incoming/x/"


def test_ssh_asks_nobody_and_believes_known_hosts_only() -> None:
    argv = ssh_command(HOST)
    assert argv[:3] == ["ssh", "-p", "2222"]
    for option in ("StrictHostKeyChecking=yes", "BatchMode=yes", "UserKnownHostsFile=/k/known", "IdentityFile=/k/id"):
        assert option in argv
    assert all(" " not in part for part in argv)


@pytest.mark.parametrize(
    ("says", "code", "kind"),
    [
        ("rsync: write failed: No space left on device (28)", 11, StorageError),
        ("rsync: mkstemp failed: Disk quota exceeded (122)", 23, StorageError),
        ("rsync error: error in file IO (code 11)", 11, StorageError),
        ("Host key verification failed.", 255, HostKeyError),
        ("drop@10.0.0.2: Permission denied (publickey).", 255, ConfigError),
        ("bash: rsync: command not found", 127, MissingToolError),
        ("ssh: connect to host 10.0.0.2 port 22: Connection refused", 255, TransferError),
        ("rsync error: timeout in data send/receive (code 30)", 30, TransferError),
        ("", 12, TransferError),
    ],
)
def test_each_failure_has_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int, kind: type[Exception]
) -> None:
    shim(tmp_path / "bin", monkeypatch, f"cat > /dev/null; echo '{says}' >&2; exit {code}")
    with pytest.raises(kind):
        send(tmp_path, ["a"], Target(str(tmp_path / "served"), None), "x", [])


def test_only_the_named_files_arrive_and_equal_ones_are_linked_not_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", Target(str(tmp_path / "served"), None)
    source.mkdir()
    for name in ("model.safetensors", "config.json", "optimizer.pt"):
        (source / name).write_bytes(name.encode())
    (source / "link").symlink_to("/etc/passwd")
    send(source, ["model.safetensors", "config.json", "link"], target, "first", [])
    (tmp_path / "served" / "incoming" / "first").rename(tmp_path / "served" / "1-aaaaaaaaaaaa")
    os.utime(source / "config.json", (1, 1))
    (source / "config.json").write_bytes(b"c0nfig.json")  # same size: only its bytes tell
    os.utime(source / "config.json", (1, 1))
    send(source, ["model.safetensors", "config.json"], target, "second", ["1-aaaaaaaaaaaa"])
    first, second = (tmp_path / "served" / n for n in ("1-aaaaaaaaaaaa", "incoming/second"))
    assert {p.name for p in first.iterdir()} == {"model.safetensors", "config.json"}
    assert (second / "model.safetensors").stat().st_ino == (first / "model.safetensors").stat().st_ino
    assert (second / "config.json").read_bytes() == b"c0nfig.json"
    assert (first / "config.json").read_bytes() == b"config.json"


def test_without_the_tool_the_fix_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingToolError, match="rsync") as caught:
        require_tools(Target("/srv", HOST))
    assert "apt-get install rsync" in caught.value.fix


def publisher(root: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Exception | None]) -> list[float]:
    """Send one checkpoint with these outcomes of its transfers. Returns the pauses; raises what the publisher does."""
    (root / "config.json").write_text("{}")
    workspace = Workspace(root)
    pauses: list[float] = []

    def fake_send(*_: object) -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(publish, "send", fake_send)
    monkeypatch.setattr(publish.time, "sleep", pauses.append)
    checkpoint = Checkpoint(root, {"id": "1-aaaaaaaaaaaa", "files": {}})
    publish.Publisher(workspace, load_settings(workspace, env={}))._send_with_back_off(checkpoint, None, [])
    return pauses


def test_a_connection_that_fails_is_tried_again_after_pauses_that_double(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [TransferError("connection reset"), TransferError("connection reset")]
    assert publisher(tmp_path, monkeypatch, [*broken, None]) == [0.5, 1.0]
    outcomes: list[Exception | None] = [TransferError(f"attempt {number}") for number in range(9)]
    with pytest.raises(TransferError, match="attempt 3"):
        publisher(tmp_path, monkeypatch, outcomes)
    assert len(outcomes) == 5


@pytest.mark.parametrize("final", [HostKeyError("another key"), StorageError("full"), ConfigError("no key")])
def test_what_no_second_try_can_mend_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final: Exception
) -> None:
    outcomes: list[Exception | None] = [final, None]
    with pytest.raises(type(final)):
        publisher(tmp_path, monkeypatch, outcomes)
    assert outcomes == [None]


def test_canaries_are_the_first_rows_with_a_finite_loss(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    lines: list[object] = [
        {"schema": "samples.v1"},
        {"row": None, "nll": 1.0, "tokens": 1},
        {"row": row, "nll": None, "tokens": 1},
        {"row": row, "nll": 1.0, "tokens": 0},
        {"row": row, "nll": 6.0, "tokens": 4},
        {"row": {"text": "x" * 30_000}, "nll": 1.0, "tokens": 1},
        {"row": {"text": "t"}, "nll": 2.0, "tokens": 1},
        [1],
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\nnot json\n"
    (tmp_path / "samples.jsonl").write_text(text)
    assert canaries_of(tmp_path) == [
        {"row": row, "loss": 1.5, "tokens": 4},
        {"row": {"text": "t"}, "loss": 2.0, "tokens": 1},
    ]
    assert canaries_of(tmp_path / "nowhere") == []
