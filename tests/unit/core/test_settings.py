import json

import pytest

from core.errors import ConfigError
from core.paths import HELD_CONFIG_VARIABLE, Workspace, find_root
from core.settings import config_schema, load_settings, settings_from

OLDER_FRAGMENT = {
    "model_name": "qwen3_0.6b",
    "model_path": "models/Qwen3-0.6B",
    "profile": {"name": "emoji_think"},
    "hyperparams": {
        "fp_precision": "bf16",
        "max_length": 2048,
        "batch_size": 1,
        "gradient_accumulation": 16,
        "learning_rate": 0.0004,
    },
    "auto_generate": {"enabled": True, "host": "localhost", "port": 8080},
    "locked": {"base_model": "Qwen/Qwen3-0.6B", "model_architecture": "Qwen3ForCausalLM"},
}


def test_an_empty_configuration_takes_the_frozen_defaults(workspace: Workspace) -> None:
    s = load_settings(workspace, env={})
    assert (s.hyperparams.epochs, s.hyperparams.max_length, s.hyperparams.fp_precision) == (1, 2048, "auto")
    assert (s.trainer.seed, s.trainer.held_out, s.trainer.held_out_cap) == (0, 0.02, 500)
    assert (s.trainer.checkpoint_every_steps, s.trainer.on_regress, s.trainer.replay_ratio) == (500, "continue", 0)
    assert (s.validation.level, s.validation.bad_rows, s.validation.too_long) == ("standard", "reject_file", "reject")
    assert (s.inbox.settle_s, s.inbox.sidecar_wait_s, s.inbox.allow_duplicates) == (2, 10, False)
    assert s.inbox.detect_specs == ["chat_sft_v1", "completion_v1"]
    assert (s.inference.host, s.inference.port, s.inference.models_dir) == ("127.0.0.1", 8765, "served")
    assert (s.inference.max_loaded, s.monitor.ports, s.model_name) == (2, [8080, 8081], "dropforge-tiny")


def test_the_older_configuration_loads_unchanged() -> None:
    s = settings_from(OLDER_FRAGMENT, "config.json")
    assert s.profile.name == "emoji_think"
    assert s.locked.base_model == "Qwen/Qwen3-0.6B"
    assert s.hyperparams.gradient_accumulation == 16


def test_set_beats_the_environment_and_the_environment_beats_the_file(workspace: Workspace) -> None:
    workspace.config_file.write_text('{"inbox": {"settle_s": 1}, "trainer": {"seed": 1}, "model_name": "file"}')
    env = {"DROPFORGE_INBOX__SETTLE_S": "2.5", "DROPFORGE_TRAINER__SEED": "2", "DROPFORGE_MODEL_NAME": "7"}
    s = load_settings(workspace, ["inbox.settle_s=0.5"], env)
    assert (s.inbox.settle_s, s.trainer.seed, s.model_name) == (0.5, 2, "7")


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"inbx": {}}, "unknown key inbx.*did you mean inbox"),
        ({"inbox": {"settle": 1}}, "unknown key inbox.settle.*inbox.settle_s"),
        ({"trainer": {"seed": -1}}, "trainer.seed: -1"),
        ({"hyperparams": {"learning_rate": 2}}, "hyperparams.learning_rate"),
        ({"validation": {"level": "deepest"}}, "validation.level"),
        ({"run": "../x"}, "run"),
        ({"locked": {"trust_remote_code": True}}, "unknown key locked.trust_remote_code"),
    ],
)
def test_what_the_schema_does_not_allow_is_refused_by_its_path(document: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_from(document, "config.json")


@pytest.mark.parametrize("text", ["", "{", '{"a": 1, "a": 2}', "[]", '{"trainer": {"seed": NaN}}'])
def test_a_damaged_file_is_a_configuration_error_with_exit_code_2(workspace: Workspace, text: str) -> None:
    workspace.config_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(workspace, env={})
    assert caught.value.exit_code == 2
    assert "config.json" in str(caught.value)


def test_a_misspelt_variable_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"inbox\.settle"):
        load_settings(workspace, env={"DROPFORGE_INBOX__SETTLE": "1"})


def test_every_key_has_a_description_a_default_and_an_example_that_validates() -> None:
    def walk(schema: dict[str, object], path: list[str]) -> None:
        for key, part in schema["properties"].items():  # type: ignore[attr-defined]  # a schema
            assert part["description"].endswith("."), key
            if "properties" in part:
                walk(part, [*path, key])
                continue
            document: object = part["examples"][0]
            for name in reversed([*path, key]):
                document = {name: document}
            settings_from(document, "example")  # type: ignore[arg-type]  # built just above
            assert key == "$schema" or "default" in part, key

    walk(config_schema(), [])


def test_the_fingerprint_changes_with_any_value_and_with_nothing_else(workspace: Workspace) -> None:
    first = load_settings(workspace, env={})
    workspace.config_file.write_text(json.dumps({"trainer": {"seed": 0}}, indent=8))
    assert load_settings(workspace, env={}).sha256 == first.sha256
    assert load_settings(workspace, ["trainer.seed=1"], {}).sha256 != first.sha256


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("monitor.ports=9180", r"--set monitor\.ports=9180: .*write it like monitor\.ports=\[8080\]"),
        ("inference.prt=9865", r"--set inference\.prt=9865: unknown key inference\.prt.*inference\.port"),
        ("hyperprams.epochs=3", r"--set hyperprams\.epochs=3: unknown key hyperprams .*hyperparams"),
    ],
)
def test_a_bad_option_is_blamed_and_not_the_file(workspace: Workspace, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_settings(workspace, [override], {})


def test_a_bad_variable_is_blamed_and_not_the_file(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="variable DROPFORGE_TRAINER__SEED"):
        load_settings(workspace, env={"DROPFORGE_TRAINER__SEED": "-1"})
    with pytest.raises(ConfigError, match="variable DROPFORGE_HYPERPRAMS__EPOCHS: unknown key hyperprams"):
        load_settings(workspace, env={"DROPFORGE_HYPERPRAMS__EPOCHS": "2"})


@pytest.mark.parametrize("text", ['{"run": "second"}', "{", None])
def test_what_a_daemon_started_loads_what_the_daemon_holds(workspace: Workspace, text: str | None) -> None:
    workspace.held_config_file.write_text('{"run": "main", "trainer": {"seed": 4}}')
    workspace.config_file.unlink() if text is None else workspace.config_file.write_text(text)
    env = {HELD_CONFIG_VARIABLE: str(workspace.held_config_file), "DROPFORGE_HYPERPARAMS__EPOCHS": "3"}
    held = load_settings(workspace, ["inbox.settle_s=1"], env)
    assert (held.run, held.trainer.seed, held.hyperparams.epochs, held.inbox.settle_s) == ("main", 4, 3, 1)
    assert find_root(workspace.root, env) == workspace.root


def test_a_held_configuration_that_is_gone_is_never_replaced_by_config_json(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"last_good_config\.json.*fix: dropforge stop"):
        load_settings(workspace, env={HELD_CONFIG_VARIABLE: str(workspace.held_config_file)})
