"""The command line's frame: options before or after the verb, errors explained, exit codes, speed of help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from core.cli import COMMANDS, cli, main
from core.paths import Workspace

Capture = pytest.CaptureFixture[str]


def test_help_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_has_help_that_says_what_it_does(verb: str, capsys: Capture) -> None:
    assert main([verb, "--help"]) == 0
    assert f"dropforge {verb}" in capsys.readouterr().out
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert len(command.get_short_help_str(200)) > 10


def test_no_command_loads_torch_or_a_web_server_for_its_help() -> None:
    code = (
        "import sys\nfrom core.cli import COMMANDS, main\nfor verb in COMMANDS: main([verb, '--help'])\n"
        "heavy = {'torch', 'transformers', 'flask', 'sqlalchemy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_verb_is_a_usage_error(capsys: Capture) -> None:
    assert main(["frobnicate"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error() -> None:
    assert main(["status", "--frobnicate"]) == 2


def test_without_a_root_the_error_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert "dropforge init" in capsys.readouterr().err


def test_the_root_stands_before_or_after_the_verb_or_in_the_environment(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    root = str(workspace.root)
    for argv in (["--root", root, "status"], ["status", "--root", root]):
        assert main(argv) == 0
        assert root in capsys.readouterr().out
    monkeypatch.setenv("DROPFORGE_ROOT", root)
    assert main(["status"]) == 0
    assert root in capsys.readouterr().out


def test_a_root_after_the_verb_beats_the_one_before_it(workspace: Workspace, tmp_path: Path) -> None:
    assert main(["--root", str(tmp_path / "none"), "status", "--root", str(workspace.root)]) == 0


def test_set_counts_before_and_after_the_verb(workspace: Workspace, capsys: Capture) -> None:
    argv = ["--set", "trainer.seed=7", "config", "show", "--set", "hyperparams.epochs=3", "--root", str(workspace.root)]
    assert main(argv) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["trainer"]["seed"], shown["hyperparams"]["epochs"]) == (7, 3)


def test_a_refused_setting_is_one_explained_error(workspace: Workspace, capsys: Capture) -> None:
    assert main(["config", "check", "--root", str(workspace.root), "--set", "hyperparams.epoch=3"]) == 2
    error = capsys.readouterr().err
    assert "unknown key hyperparams.epoch" in error
    assert "fix: did you mean hyperparams.epochs?" in error
    assert "Traceback" not in error


def test_with_json_an_error_is_a_json_document_on_stdout(workspace: Workspace, capsys: Capture) -> None:
    assert main(["--json", "config", "check", "--root", str(workspace.root), "--set", "nothing=3"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["error"] == "config"


def test_a_strangers_name_in_an_error_is_one_harmless_line(workspace: Workspace, capsys: Capture) -> None:
    assert main(["submit", "no\nsuch\x1b[31m.jsonl", "--root", str(workspace.root)]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: no\\x0asuch\\x1b[31m.jsonl: no such file"


def test_a_word_that_is_not_utf8_is_named_and_nothing_is_written(
    workspace: Workspace, tmp_path: Path, capsys: Capture
) -> None:
    (rows := tmp_path / os.fsdecode(b"\xfe.jsonl")).write_text('{"text": "a row"}\n')
    root = ["--root", str(workspace.root)]
    assert main(["submit", "--spec", os.fsdecode(b"\xff"), str(rows), *root]) == 2
    assert "\\xff" in capsys.readouterr().err
    assert [path for path in workspace.inbox.iterdir() if path.is_file()] == []
    assert main(["submit", str(rows), *root]) == 0, "names of files may be any bytes"


def test_a_folder_where_a_file_should_be_is_explained(workspace: Workspace, capsys: Capture) -> None:
    (workspace.logs_dir / "daemon.jsonl").mkdir(parents=True)
    assert main(["logs", "--root", str(workspace.root)]) == 4
    assert "daemon.jsonl: Is a directory" in capsys.readouterr().err


def test_a_closed_pipe_is_no_traceback(workspace: Workspace) -> None:
    line = f"{sys.executable} -m core.cli config show --root {workspace.root} | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_the_versions_of_command_and_package_agree(repository: Path, capsys: Capture) -> None:
    assert main(["--version"]) == 0
    version = capsys.readouterr().out.split()[-1]
    assert f'version = "{version}"' in (repository / "pyproject.toml").read_text()
