"""From a folder or a Hub id to a model in memory, and the base into checkpoint-0 (arrow: trainer -> checkpoints).

Reads    the model folder named in config.json, or the Hub when it is an id; only safetensors, never code or pickle
Writes   models/dropforge-tiny/ when the embedded model is configured and missing; files of checkpoint-0 into a staged
         folder
Errors   ModelError (2xxx) naming the model and the fix; ConfigError when a locked value would change
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # model configs are untyped

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig, PreTrainedModel

from core.atomic import read_json, sha256_file, write_bytes
from core.chat_templates import ChatEncoder
from core.checkpoints import Checkpoint
from core.errors import CheckpointError, ConfigError, ModelError
from core.paths import Workspace
from core.settings import Settings
from trainer.models.save import MODEL_WEIGHTS, disk_errors
from trainer.models.tiny import MODEL_NAME as TINY_NAME
from trainer.models.tiny import make_tiny

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped; a log is no terminal
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILE = "tokenizer.json"
_TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TEMPLATE_FILE,
)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on its way into checkpoint-0."""

    name: str
    source: str  # folder or Hub id
    model: PreTrainedModel


def read_base(workspace: Workspace, settings: Settings) -> Base:
    """Load the configured base model; the embedded one is made first when it is missing.

    Raises:
        ModelError: it cannot be found or loaded. ConfigError: `locked` says another architecture.
    """
    folder = workspace.resolve(settings.model_path)
    if settings.model_name == TINY_NAME and not (folder / MODEL_WEIGHTS).is_file():
        make_tiny(folder, settings.trainer.seed)
    source = str(folder) if folder.is_dir() else settings.model_path
    refuse_quantized(source)
    model = load_causal_lm(source)
    refuse_other_architecture(model.config, settings)
    return Base(settings.model_name, source, model)


def refuse_quantized(source: str) -> None:
    """Raise ConfigError when config.json names a quantization: such weights can be neither trained nor saved."""
    path = Path(source) / "config.json"
    if path.is_file() and read_json(path).get("quantization_config"):
        raise ConfigError(
            "the base model is quantized (quantization_config); its weights cannot be trained",
            where=str(path),
            fix="name an unquantized base, or save it dequantized and delete quantization_config from its config.json",
        )


def load_causal_lm(source: str, dtype: torch.dtype | str = "auto", **quantized: Any) -> PreTrainedModel:
    """Load a causal language model, without running any code that came with it.

    Args:
        quantized: `quantization_config` and `device_map` of a model to be loaded in 4 bits.

    Raises:
        ModelError: missing, damaged, pickled, or of a kind transformers does not know.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, **quantized
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the base model cannot be loaded: {reason}",
            where=source,
            fix="set model_path to a folder with config.json and *.safetensors, or to a Hub id this machine can reach",
        ) from error
    loaded: PreTrainedModel = model
    return loaded


def refuse_other_architecture(config: Any, settings: Settings) -> None:  # transformers' config
    """Compare locked.model_architecture with the model's own config. Raises ConfigError with both values."""
    locked = settings.locked.model_architecture
    found = (getattr(config, "architectures", None) or ["unknown"])[0]
    if locked is not None and found != locked:
        raise ConfigError(
            f"locked.model_architecture is {locked!r}, the model is {found!r}",
            where="config.json",
            fix="put the locked model back, or begin another `run` with its own lock",
        )


def refuse_other_base(settings: Settings, first_manifest: dict[str, Any]) -> None:
    """Compare the configuration with the base a run began with, as its first manifest has it.

    Raises:
        ConfigError: locked.base_model or model_name is another, with both values.
    """
    began_with = first_manifest["base"]["name"]
    for key, value in (("locked.base_model", settings.locked.base_model), ("model_name", settings.model_name)):
        if key == "model_name" and settings.locked.base_model is not None:
            continue  # the lock decides; model_name may be an alias of it
        if value is not None and value != began_with:
            raise ConfigError(
                f"{key} is {value!r}, but run {first_manifest['run']!r} began with {began_with!r}",
                where="config.json",
                fix=f"set {key} back to {began_with!r}, or name another `run`",
            )


def write_base(base: Base, staged: Path) -> None:
    """Write the base's files (weights, config, tokenizer, template) into the staged folder of checkpoint-0.

    Raises:
        ModelError: it has no fast tokenizer, or a weight is not finite. StorageError: the disk refuses.
    """
    refuse_non_finite(base.model, base.source)
    with disk_errors(staged):
        base.model.save_pretrained(staged, max_shard_size="1TB")
        _save_tokenizer(base.source, staged)
        encoder = ChatEncoder.from_folder(staged)
        write_bytes(staged / TEMPLATE_FILE, encoder.template.encode())
        answers = base.model.generation_config or GenerationConfig()  # type: ignore[no-untyped-call]  # untyped there
        answers.eos_token_id = sorted(encoder.eos_ids)
        answers.save_pretrained(staged)


def _save_tokenizer(source: str, staged: Path) -> None:
    """Copy a folder's tokenizer byte for byte, so that tokens made with it before stay valid; save a Hub one."""
    folder = Path(source)
    if (folder / TOKENIZER_FILE).is_file():
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, staged / name)
        return
    try:
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(staged)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer cannot be loaded: {error}", where=source, fix="add tokenizer.json") from error
    if not (staged / TOKENIZER_FILE).is_file():
        raise ModelError("the model has no fast tokenizer", where=source, fix="add tokenizer.json to its folder")


def refuse_non_finite(model: torch.nn.Module, where: str) -> None:
    """Raise ModelError naming the first weight that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{name} holds NaN or infinity", where=where, fix="download the model again")


def fingerprints(folder: Path) -> dict[str, str | None]:
    """SHA-256 of tokenizer and chat template of a checkpoint folder, as the manifest names them."""
    template = folder / TEMPLATE_FILE
    return {
        "tokenizer_sha256": sha256_file(folder / TOKENIZER_FILE),
        "chat_template_sha256": hashlib.sha256(template.read_bytes()).hexdigest() if template.is_file() else None,
    }


def versions() -> dict[str, str]:
    """What the weights were made with, for the manifest."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def refuse_other_world(manifest: dict[str, Any], base: Checkpoint) -> None:
    """Compare what a checkpoint was made with to what it would be trained on with.

    Raises:
        ConfigError: another major version of transformers. CheckpointError: another tokenizer or template.
    """
    made, here = str(manifest["versions"].get("transformers", transformers.__version__)), transformers.__version__
    if made.partition(".")[0] != here.partition(".")[0]:
        raise ConfigError(
            f"{manifest['id']} was made with transformers {made}, here is {here}",
            where="config.json",
            fix=f"pip install 'transformers=={made}', or begin another `run`",
        )
    for key, found in fingerprints(base.folder).items():
        if manifest[key] != found:
            raise CheckpointError(
                f"{key} is {str(found)[:12]}, {manifest['id']} was trained with {str(manifest[key])[:12]}",
                where=str(base.folder),
                fix="restore checkpoint-0 from a backup, or begin another `run`",
            )


def load_trunk(base: Checkpoint, quantization: BitsAndBytesConfig | None, device: str) -> PreTrainedModel:
    """The base of a run in fp32, its linear layers in 4 bits when asked for, ready to be trained or adapted.

    Raises:
        ModelError: it cannot be loaded.
    """
    quantized = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    return load_causal_lm(str(base.folder), torch.float32, **quantized)
