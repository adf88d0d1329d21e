"""The public surface, frozen: it may grow, but what stands here is not renamed or dropped."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from core import errors
from core.cli import cli, main
from core.control import COMMANDS as ORDERS
from core.control import REQUESTS
from core.job_queue import new_verdict
from core.paths import LANES, Workspace, schema_file
from core.settings import config_schema, load_settings
from sample_root import working_day

VERBS = {
    "init": [],
    "doctor": [],
    "config": ["show", "check"],
    "up": ["--exit-when-idle"],
    "daemon": [],
    "monitor": [],
    "serve": [],
    "submit": ["--spec", "--priority", "--generator", "--wait"],
    "check": ["--level", "--spec", "--show-mask"],
    "status": ["--watch"],
    "jobs": [],
    "retry": [],
    "cancel": [],
    "logs": ["-f"],
    "pause": ["--reason", "--release-gpu", "--wait"],
    "resume": [],
    "skip": [],
    "stop": [],
    "checkpoint": [],
    "checkpoints": [],
    "leaderboard": [],
    "compare": ["--suite"],
    "evaluate": ["--suite"],
    "suite": ["add"],
    "promote": [],
    "rollback": [],
    "rewind": [],
    "pin": [],
    "export": ["--merge"],
    "verify": ["--rebuild"],
    "lineage": [],
    "ask": ["--checkpoint"],
    "report": ["--since", "--html"],
}
KEYS: dict[str, Any] = {
    "hyperparams.epochs": 1,
    "hyperparams.max_length": 2048,
    "hyperparams.fp_precision": "auto",
    "trainer.seed": 0,
    "trainer.method": None,
    "trainer.held_out": 0.02,
    "trainer.held_out_cap": 500,
    "trainer.checkpoint_every_steps": 500,
    "trainer.on_regress": "continue",
    "trainer.replay_ratio": 0,
    "validation.level": "standard",
    "validation.bad_rows": "reject_file",
    "validation.too_long": "reject",
    "inbox.settle_s": 2,
    "inbox.sidecar_wait_s": 10,
    "inbox.allow_duplicates": False,
    "inbox.detect_specs": ["chat_sft_v1", "completion_v1"],
    "inference.host": "127.0.0.1",
    "inference.port": 8765,
    "inference.models_dir": "served",
    "inference.max_loaded": 2,
    "monitor.ports": [8080, 8081],
    "lineage.allow_unknown_generators": True,
}
KEYS_WITHOUT_FROZEN_DEFAULT = (
    "hyperparams.learning_rate",
    "hyperparams.batch_size",
    "hyperparams.gradient_accumulation",
    "inbox.spec_by_pattern",
    "monitor.host",
    "profile.name",
    "auto_generate.enabled",
    "locked.base_model",
    "locked.model_architecture",
)
OLD_CONFIG = {
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
VERDICT = """schema job_id file sha256 bytes rows rows_train rows_held_out rows_set_aside rows_dropped state code
message line column field fix spec level issues tokens received_at finished_at duplicate_of training effect
checkpoint served"""
MANIFEST = """schema id step run parent created_at files training_files base tokenizer_sha256 chat_template_sha256
profile config_sha256 versions jobs train_loss"""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_its_options_stand(verb: str) -> None:
    context = click.Context(cli)
    command = cli.get_command(context, verb)
    assert command is not None, f"dropforge {verb} is gone"
    offered = {name for parameter in command.params for name in parameter.opts}
    if isinstance(command, click.Group):
        offered |= {*command.commands}
        leaves = list(command.commands.values())
    else:
        leaves = [command]
    assert {*VERBS[verb]} <= offered
    for leaf in leaves:
        assert {"--root", "--set", "--json"} <= {name for p in leaf.params for name in p.opts}


@pytest.mark.parametrize("key", [*KEYS, *KEYS_WITHOUT_FROZEN_DEFAULT])
def test_every_key_stands_with_its_default_and_is_documented(key: str) -> None:
    part: Any = config_schema()
    for name in key.split("."):
        part = part["properties"][name]
    assert key in KEYS_WITHOUT_FROZEN_DEFAULT or part["default"] == KEYS[key]
    assert part["description"]
    assert part["examples"]


def test_the_schema_is_closed_at_every_level() -> None:
    def sections(schema: Any) -> Any:
        if "properties" in schema:
            yield schema
            for part in schema["properties"].values():
                yield from sections(part)

    assert [s for s in sections(config_schema()) if s.get("additionalProperties") is not False] == []


def test_the_older_systems_config_loads_unchanged(workspace: Workspace) -> None:
    workspace.config_file.write_text(json.dumps(OLD_CONFIG))
    settings = load_settings(workspace, env={})
    assert settings.profile.name == "emoji_think"
    assert settings.hyperparams.gradient_accumulation == 16


def test_file_then_environment_then_set(workspace: Workspace) -> None:
    workspace.config_file.write_text('{"trainer": {"seed": 1}, "model_name": "a"}')
    env = {"DROPFORGE_TRAINER__SEED": "2", "DROPFORGE_MODEL_NAME": "b"}
    assert load_settings(workspace, env={}).trainer.seed == 1
    assert load_settings(workspace, env=env).trainer.seed == 2
    assert load_settings(workspace, env=env).model_name == "b"
    assert load_settings(workspace, ["trainer.seed=3"], env=env).trainer.seed == 3


def test_a_verdict_has_the_contracts_keys() -> None:
    assert [*new_verdict()] == VERDICT.split()
    # What the gates show of the first rows, the run they checked them for, what the background child finds out later.
    later = {"mask", "run", "audit"}
    assert {*new_verdict()} | later == {*json.loads(schema_file("verdict").read_text())["properties"]}


def test_a_manifest_has_the_contracts_keys(workspace: Workspace) -> None:
    assert {*working_day(workspace).catalogue.manifests()[0]} == {*MANIFEST.split()}


def test_lanes_orders_and_requests_are_the_contracts() -> None:
    assert LANES == ("high", "normal", "low", "active", "done", "failed", "held")
    assert ORDERS == ("stop", "resume", "pause", "skip", "checkpoint")
    assert {*REQUESTS} >= {*"cancel retry promote rollback rewind pin evaluate suite".split()}


@pytest.mark.parametrize(
    ("error", "exit_code", "thousand"),
    [
        (errors.DataError, 5, 1),
        (errors.ConfigError, 2, 1),
        (errors.NotFoundError, 2, 1),
        (errors.AlreadyRunningError, 3, 3),
        (errors.StorageError, 4, 3),
        (errors.GateFailedError, 5, 2),
        (errors.DeadlineError, 1, 4),
        (errors.InternalError, 1, 5),
    ],
)
def test_exit_codes_and_code_families(error: type[errors.DropforgeError], exit_code: int, thousand: int) -> None:
    assert error.exit_code == exit_code
    assert error.code // 1000 == thousand


@pytest.mark.parametrize(
    ("argv", "keys"),
    [
        (["status"], {"daemon", "training", "deployment"}),
        (["jobs"], {"jobs"}),
        (["checkpoints"], {"checkpoints"}),
        (["leaderboard"], {"serving", "candidates"}),
        (["lineage", "checkpoint-560"], {"checkpoint", "files", "checkpoints", "served"}),
        (["doctor"], {"ok", "checks"}),
        (["verify"], {"ok", "jobs", "files", "checkpoints", "problems"}),
    ],
)
def test_the_shape_of_each_json_document(
    workspace: Workspace, argv: list[str], keys: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    working_day(workspace)
    main([*argv, "--json", "--root", str(workspace.root)])
    assert {*json.loads(capsys.readouterr().out)} == keys


def test_submit_and_check_print_one_line_a_file(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a row"}\n')
    assert main(["submit", str(path), "--json", "--root", str(workspace.root)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert {*entry} == {"file", "sha256", "job_id"}
    assert entry["job_id"] is None
    main(["check", str(path), "--json", "--root", str(workspace.root)])
    (verdict,) = json.loads(capsys.readouterr().out)["files"]
    assert {*verdict} == {*VERDICT.split(), "audit"}
    assert verdict["state"] is None
