import json
import logging
from collections.abc import Iterator

import pytest

from core.errors import ConfigError
from core.logs import setup_logging
from core.paths import Workspace


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_record_stays_one_line_whatever_it_names(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(workspace, "test")
    logging.getLogger("x").warning("file %s refused", 'a\r\nb\x1b[31m"')
    [line] = (workspace.logs_dir / "test.jsonl").read_text().splitlines()
    assert json.loads(line)["message"] == 'file a\r\nb\x1b[31m" refused'
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "\x1b" not in shown


def test_an_error_of_ours_is_logged_with_its_facts(workspace: Workspace) -> None:
    setup_logging(workspace, "test")
    try:
        raise ConfigError("bad key", where="config.json", fix="mend it")
    except ConfigError:
        logging.getLogger("x").exception("refused")
    record = json.loads((workspace.logs_dir / "test.jsonl").read_text())
    assert record["error"] == {
        "code": 1101,
        "error": "config",
        "message": "bad key",
        "where": "config.json",
        "fix": "mend it",
        "retryable": False,
    }


def test_a_log_that_cannot_be_written_stops_nothing(workspace: Workspace) -> None:
    setup_logging(workspace, "test")
    (workspace.logs_dir / "test.jsonl").mkdir()
    logging.getLogger("x").warning("still here")


def test_a_folder_that_cannot_be_made_is_said_on_stderr_and_stops_nothing(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.logs_dir.rmdir()
    workspace.logs_dir.write_text("in the way")
    setup_logging(workspace, "test")
    logging.getLogger("x").warning("still here")
    shown = capsys.readouterr().err
    assert "no log file" in shown
    assert "still here" in shown


def test_a_log_that_grows_is_turned_over_and_old_ones_go(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.logs._ROTATE_BYTES", 2_000)
    setup_logging(workspace, "test")
    for number in range(200):
        logging.getLogger("x").warning("line %d of many, long enough to fill a file", number)
    files = sorted(path.name for path in workspace.logs_dir.iterdir())
    assert len(files) > 2
    assert sum(path.stat().st_size for path in workspace.logs_dir.iterdir()) < 2_000 * (len(files) + 1)
    assert "line 199" in (workspace.logs_dir / "test.jsonl").read_text()
