"""config.json edited while the daemon runs, or broken before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.daemon.config_watch import ConfigWatch
from core.daemon.events import EventLog
from core.errors import ConfigError
from core.paths import Workspace

LOCKED = {"locked": {"base_model": "Qwen/Qwen3-0.6B"}}


@pytest.fixture
def watch(workspace: Workspace) -> ConfigWatch:
    workspace.config_file.write_text(json.dumps(LOCKED))
    return ConfigWatch(workspace)


def edit(workspace: Workspace, text: str | None) -> None:
    """Replace the file, as an editor does, or remove it."""
    if text is None:
        workspace.config_file.unlink()
        return
    new = workspace.root / "config.new"
    new.write_text(text)
    new.replace(workspace.config_file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"hyperparams": {"learning_rate": NaN}}', ["NaN"]),
        ('{"hyperparams": {"learning_rate": 0.', ["config.json"]),
        ('{"hyperparams": {"learning_rat": 0.1}}', ["hyperparams.learning_rat", "learning_rate"]),
        (None, ["config.json"]),
        ("", ["config.json"]),
        ('{"model_name": "another"}', ["model_name", "dropforge-tiny", "another"]),
        ('{"locked": {"base_model": "evil/base"}}', ["locked.base_model", "Qwen/Qwen3-0.6B", "evil/base"]),
        ("{}", ["locked.base_model", "Qwen/Qwen3-0.6B"]),
    ],
)
def test_a_bad_edit_is_refused_by_field_with_both_values_and_what_holds_goes_on(
    watch: ConfigWatch, workspace: Workspace, text: str | None, words: list[str]
) -> None:
    before = watch.settings
    edit(workspace, text)
    assert watch.tick(10.0, EventLog(workspace)) is False
    assert watch.settings is before
    assert watch.error is not None and [word for word in words if word not in watch.error] == []
    edit(workspace, json.dumps(LOCKED | {"hyperparams": {"epochs": 3}}))
    assert watch.tick(20.0, EventLog(workspace)) is True
    assert (watch.settings.hyperparams.epochs, before.hyperparams.epochs, watch.error) == (3, 1, None)


@pytest.mark.parametrize("text", ["", "{", '{"hyperparams": {"epochs": 0}}', None])
def test_a_broken_file_at_the_start_names_the_last_one_that_was_taken(workspace: Workspace, text: str | None) -> None:
    workspace.config_file.write_text(json.dumps(LOCKED))
    ConfigWatch(workspace).keep_copy()
    edit(workspace, text)
    with pytest.raises(ConfigError) as caught:
        ConfigWatch(workspace)
    assert caught.value.exit_code == 2
    copy = workspace.status_file("last_good_config.json")
    assert str(copy) in caught.value.fix and json.loads(copy.read_text()) == LOCKED


def test_without_a_copy_no_copy_is_named(workspace: Workspace) -> None:
    edit(workspace, "{")
    with pytest.raises(ConfigError) as caught:
        ConfigWatch(workspace)
    assert "last_good" not in str(caught.value)


def test_an_edit_that_is_taken_becomes_the_copy(watch: ConfigWatch, workspace: Workspace) -> None:
    good: dict[str, Any] = LOCKED | {"hyperparams": {"epochs": 2}}
    edit(workspace, json.dumps(good))
    watch.tick(10.0, EventLog(workspace))
    edit(workspace, "{")
    watch.tick(20.0, EventLog(workspace))
    assert json.loads(Path(workspace.status_file("last_good_config.json")).read_text()) == good


def test_trouble_stands_in_the_log_as_a_warning_and_good_news_does_not(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="core.daemon.events")
    events = EventLog(workspace)
    events.emit("config_refused", "config.json: broken")
    events.emit("config_loaded", "config.json: taken")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
