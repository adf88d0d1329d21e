"""The settings of a root: config.json < environment < `--set`, checked against a closed schema (beside all arrows).

Reads    config.json (what a daemon starts: its copy of it), DROPFORGE_<SECTION>__<KEY>, `--set section.key=value`
Format   config/schemas/config.schema.json: the one list of keys, defaults, ranges and descriptions
Errors   ConfigError naming the JSON path, the value and the nearest known key
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # a configuration is JSON before it is checked

import jsonschema_rs
import msgspec

from core.atomic import parse_json, read_json
from core.errors import ConfigError, JsonError, StorageError
from core.paths import HELD_CONFIG_VARIABLE, Workspace, schema_file

ENV_PREFIX = "DROPFORGE_"
_NOT_SETTINGS = {"DROPFORGE_ROOT"}


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """How prompts are wrapped."""

    name: str | None


@dataclass(frozen=True, slots=True)
class Hyperparams:
    """The dials of training."""

    epochs: int
    learning_rate: float
    batch_size: int
    gradient_accumulation: int
    max_length: int
    fp_precision: str


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How the trainer behaves."""

    seed: int
    method: str | None
    held_out: float
    held_out_cap: int
    checkpoint_every_steps: int
    on_regress: str
    replay_ratio: float
    schedule: str
    warmup_steps: int
    grad_clip: float
    weight_decay: float
    lora_rank: int
    quantize: str | None
    threads: int | None
    step_timeout_s: float
    spike_factor: float
    on_spike: str
    gradient_checkpointing: bool
    patience: int
    min_delta: float


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """The gates."""

    level: str
    bad_rows: str
    bad_rows_limit: float
    too_long: str
    limits: dict[str, float]


@dataclass(frozen=True, slots=True)
class InboxSettings:
    """How dropped files are taken."""

    settle_s: float
    sidecar_wait_s: float
    allow_duplicates: bool
    detect_specs: list[str]
    spec_by_pattern: dict[str, str]
    max_bytes: int


@dataclass(frozen=True, slots=True)
class LineageSettings:
    """Where data comes from."""

    allow_unknown_generators: bool


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """The judge."""

    device: str
    alpha: float
    budget_s: float


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """The inference server."""

    host: str
    port: int
    models_dir: str
    max_loaded: int
    max_streams: int
    max_queue: int
    allowed_hosts: list[str]


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """The browser monitor."""

    host: str
    ports: list[int]


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """Reports, on demand and once a day."""

    at: str | None
    webhook: str | None
    apprise: list[str]
    price_per_hour: float | None
    currency: str


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Retention."""

    keep: int


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """The index of jobs, metrics and evaluations."""

    url: str | None


@dataclass(frozen=True, slots=True)
class AutoGenerateSettings:
    """Data made when the queue runs dry (not built yet: `enabled` blocks the trainer)."""

    enabled: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class LockedSettings:
    """What must never change within a run; compared with the run's first manifest."""

    base_model: str | None
    model_architecture: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """The merged configuration. The keys, units and ranges are described in the schema.

    `raw` is the same as JSON, defaults filled in; `sha256` is its fingerprint for manifests.
    """

    model_name: str
    model_path: str
    run: str
    profile: ProfileSettings
    hyperparams: Hyperparams
    trainer: TrainerSettings
    validation: ValidationSettings
    inbox: InboxSettings
    lineage: LineageSettings
    evaluation: EvaluationSettings
    inference: InferenceSettings
    monitor: MonitorSettings
    report: ReportSettings
    checkpoints: CheckpointSettings
    ledger: LedgerSettings
    auto_generate: AutoGenerateSettings
    locked: LockedSettings
    raw: dict[str, Any]
    sha256: str


def load_settings(
    workspace: Workspace,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    *,
    text: bytes | None = None,
) -> Settings:
    """Merge and check the configuration of a root; in what a daemon started, the one that the daemon holds.

    Args:
        overrides: `section.key=value` strings of `--set`, the strongest. env: defaults to the process environment.
        text: what config.json said when somebody read it, to check that and not what it says by now.

    Raises:
        ConfigError: unreadable, unknown key, wrong type or range; says the JSON path, the value and the fix.
    """
    environment = os.environ if env is None else env
    held = environment.get(HELD_CONFIG_VARIABLE) if text is None else None
    if held:
        document = _document(Path(held), "dropforge stop, then dropforge up writes it again")
    else:
        document = _document(workspace.config_file, f"mend {workspace.config_file}", text)
    sources = Sources(str(workspace.config_file))
    for path, value, source in _environment(environment) + [_override(item) for item in overrides]:
        _assign(document, path, value, source)
        sources.said[".".join(path)] = source
    return _checked(document, sources)


def _document(file: Path, fix: str, text: bytes | None = None) -> dict[str, Any]:
    """What a configuration file says, not checked yet. Raises ConfigError."""
    try:
        document = read_json(file) if text is None else parse_json(text, str(file))
    except (JsonError, StorageError) as error:
        raise ConfigError(error.message, where=error.where or str(file), fix=fix) from error
    if not isinstance(document, dict):
        raise ConfigError("the document is not a JSON object", where=str(file), fix=fix)
    return document


@dataclass(frozen=True, slots=True)
class Sources:
    """Which file, variable or option said what, for errors."""

    file: str
    said: dict[str, str] = field(default_factory=dict)

    def of(self, path: str) -> str:
        """Who said the value at a dotted path; of a section, the first that said something in it."""
        above = (s for key, s in self.said.items() if f"{path}.".startswith(f"{key}."))
        below = (s for key, s in self.said.items() if key.startswith(f"{path}."))
        return next(above, next(below, self.file))


def settings_from(document: Mapping[str, Any], where: str) -> Settings:
    """Check a configuration document and fill in the defaults. Raises ConfigError."""
    return _checked(document, Sources(where))


def _checked(document: Mapping[str, Any], sources: Sources) -> Settings:
    schema = config_schema()
    _refuse_unknown(document, schema, sources, "")
    for error in jsonschema_rs.validator_for(schema).iter_errors(document):
        keys = [str(part) for part in error.instance_path if isinstance(part, str)]
        path = ".".join(keys)
        fix = f"write it like {path}={_example(schema, keys)}" if keys else "write a JSON object"
        raise ConfigError(f"{path or 'the document'}: {error.message}", where=sources.of(path), fix=fix)
    raw = with_defaults(document, schema)
    raw.pop("$schema", None)
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    return msgspec.convert({**raw, "raw": raw, "sha256": digest}, Settings)


def _example(schema: Mapping[str, Any], keys: Sequence[str]) -> str:
    part: Mapping[str, Any] = schema
    for key in keys:
        part = part.get("properties", {}).get(key, part)
    return json.dumps(part.get("examples", [{}])[0])


def load_job_settings(path: Path) -> Settings:
    """Read the copy of the configuration that a job carries. Raises ConfigError."""
    try:
        return settings_from(read_json(path), str(path))
    except (JsonError, StorageError) as error:
        raise ConfigError(error.message, where=str(path), fix="dropforge retry JOB_ID writes a new copy") from error


def config_schema() -> dict[str, Any]:
    """The closed schema of config.json."""
    return read_json(schema_file("config"))


def with_defaults(document: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the document in which every missing key has the schema's default, in the schema's order."""
    filled: dict[str, Any] = {}
    for key, part in schema["properties"].items():
        if "properties" in part:
            filled[key] = with_defaults(document.get(key, {}), part)
        elif key in document:
            filled[key] = document[key]
        elif "default" in part:
            filled[key] = part["default"]
    return filled


def _refuse_unknown(document: Mapping[str, Any], schema: Mapping[str, Any], sources: Sources, path: str) -> None:
    known = schema["properties"]
    for key, value in document.items():
        place = f"{path}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {path}{near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"unknown key {place}", where=sources.of(place), fix=hint)
        if "properties" in known[key] and isinstance(value, dict):
            _refuse_unknown(value, known[key], sources, f"{place}.")


def _environment(env: Mapping[str, str]) -> list[tuple[list[str], str, str]]:
    names = sorted(name for name in env if name.startswith(ENV_PREFIX) and name not in _NOT_SETTINGS)
    return [(name.removeprefix(ENV_PREFIX).lower().split("__"), env[name], f"variable {name}") for name in names]


def _override(item: str) -> tuple[list[str], str, str]:
    key, equals, text = item.partition("=")
    if not equals:
        raise ConfigError(f"--set {item!r} has no '='", fix="--set section.key=value")
    return key.strip().split("."), text, f"--set {item}"


def _assign(document: dict[str, Any], path: Sequence[str], text: str, source: str) -> None:
    """Put a value given as text at its place; JSON where the text is JSON, else the text itself."""
    target = document
    for part in path[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(
                f"{'.'.join(path)} is no section", where=source, fix="dropforge config show lists the keys"
            )
    target[path[-1]] = _typed(text, path)


def _typed(text: str, path: Sequence[str]) -> object:
    part: Any = config_schema()
    for name in path:
        part = part.get("properties", {}).get(name, {})
    if part.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
