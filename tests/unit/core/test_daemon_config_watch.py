"""config.json edited while the daemon runs, or broken before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.daemon.config_watch import ConfigWatch
from core.daemon.events import EventLog
from core.errors import ConfigError, StorageError
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
        ('{"run": "second"}', ["run", "main", "second", "dropforge stop", "another run"]),
        ('{"inference": {"port": 9876}}', ["inference.port", "8765", "9876", "dropforge up", "dropforge serve"]),
        ('{"inference": {"host": "::1"}}', ["inference.host", "127.0.0.1", "::1", "dropforge serve"]),
        ('{"inference": {"models_dir": "other"}}', ["inference.models_dir", "served", "other", "dropforge serve"]),
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


@pytest.mark.parametrize("bad", ["{", '{"run": "second"}'])
def test_the_same_file_back_ends_the_refusal_and_lets_what_was_refused_be_tried_again(
    watch: ConfigWatch, workspace: Workspace, bad: str
) -> None:
    before, events = watch.settings, EventLog(workspace)
    edit(workspace, bad)
    watch.tick(10.0, events)
    edit(workspace, json.dumps(LOCKED))
    assert watch.tick(20.0, events) is True
    assert (watch.error, watch.settings) == (None, before)
    assert watch.tick(30.0, events) is False, "and only once"


def test_the_copy_is_what_was_checked_whatever_the_file_says_by_now(workspace: Workspace) -> None:
    workspace.config_file.write_text(json.dumps(LOCKED))
    watch = ConfigWatch(workspace)
    edit(workspace, '{"run": "second"}')
    watch.keep_copy()
    assert json.loads(workspace.held_config_file.read_text()) == LOCKED


@pytest.mark.parametrize("text", [None, "{", '{"run": "second"}'])
def test_a_copy_that_somebody_removes_or_edits_is_written_again(
    watch: ConfigWatch, workspace: Workspace, text: str | None
) -> None:
    watch.keep_copy()
    workspace.held_config_file.unlink()
    if text is not None:
        workspace.held_config_file.write_text(text)
    assert watch.tick(10.0, EventLog(workspace)) is True
    assert json.loads(workspace.held_config_file.read_text()) == LOCKED
    assert watch.tick(20.0, EventLog(workspace)) is False


def test_an_edit_whose_copy_cannot_be_written_is_not_taken_before_it_can(
    watch: ConfigWatch, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise StorageError("No space left on device")

    edit(workspace, json.dumps(LOCKED | {"hyperparams": {"epochs": 2}}))
    with monkeypatch.context() as patch:
        patch.setattr("core.daemon.config_watch.write_bytes", full)
        with pytest.raises(StorageError):
            watch.tick(10.0, EventLog(workspace))
        assert watch.settings.hyperparams.epochs == 1
    assert watch.tick(20.0, EventLog(workspace)) is True
    assert watch.settings.hyperparams.epochs == 2


def test_trouble_stands_in_the_log_as_a_warning_and_good_news_does_not(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="core.daemon.events")
    events = EventLog(workspace)
    events.emit("config_refused", "config.json: broken")
    events.emit("config_loaded", "config.json: taken")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
