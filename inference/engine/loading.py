"""From a verified checkpoint folder to a model ready to serve (arrow: publisher -> inference server).

Reads    models_dir/<id>/ and, for LoRA, models_dir/base/<sha256>/        Writes nothing
Errors   ModelError naming the file and the field; never a pickle, never code from the checkpoint
"""

import copy
import math
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any  # adapter_config.json has any shape; the fields that matter are checked below

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from core.atomic import read_json
from core.errors import ModelError, ResourceError
from inference.engine.attention import NAME, register
from inference.engine.decoder import changes_with_length, is_plain
from inference.engine.layers import JoinedLinear, JoinedPart, LowRank, PackedLinear, pack

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_MODULE_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_SLICE_LAYERS = 8  # linears packed between two steps of the streams that run meanwhile
# Variants of LoRA whose arithmetic is not the plain pair; serving one as a plain pair would give wrong answers
# silently.
_REFUSED_ADAPTER_FIELDS = (
    "use_dora",
    "modules_to_save",
    "fan_in_fan_out",
    "lora_bias",
    "alora_invocation_tokens",
    "trainable_token_indices",
)


def load_base(folder: Path, device: torch.device) -> Generator[None, None, PreTrainedModel]:
    """Load full weights and pack them, in slices. Returns the model, evaluated and with packed linears.

    Raises:
        ModelError: transformers cannot build it, a weight is missing or left over.
    """
    register()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        # Any: with output_loading_info it returns a pair, which its annotation does not know
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError as error:
        raise _no_memory(error, folder) from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        if "allocate memory" in str(error):
            raise _no_memory(error, folder) from error
        raise ModelError(f"transformers cannot load it: {_one_line(error)}", where=str(folder)) from error
    model: PreTrainedModel = loaded[0]
    report: dict[str, Any] = loaded[1]
    problems = [
        f"{kind}: {sorted(report[kind])[:3]}" for kind in ("missing_keys", "mismatched_keys") if report.get(kind)
    ]
    if problems:
        raise ModelError(f"the weights do not fit the model ({'; '.join(problems)})", where=str(folder))
    model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method and loses its signature
    model.train(False).requires_grad_(False)
    yield
    yield from _pack_linears(model)
    return model


def _pack_linears(model: PreTrainedModel) -> Generator[None, None, None]:
    if is_plain(model):
        for layer in model.model.layers:
            _join(layer.self_attn)
            yield
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for count, (name, module) in enumerate(linears, start=1):
        packed, is_packed = pack(module.weight.data)
        bias = None if module.bias is None else module.bias.data
        _replace(model, name, PackedLinear(packed, bias, is_packed, None))
        if count % _SLICE_LAYERS == 0:
            yield


def _join(attention: nn.Module) -> None:
    """Query, key and value of one attention, which have the same input, become one product."""
    names = ("q_proj", "k_proj", "v_proj")
    linears: list[Any] = [attention.get_submodule(name) for name in names]  # Any: modules' attributes are untyped
    packed, is_packed = pack(torch.cat([linear.weight.data for linear in linears]))
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    joined = JoinedLinear(packed, torch.cat(biases) if biases else None, is_packed, [n.out_features for n in linears])
    for place, name in enumerate(names):
        setattr(attention, name, JoinedPart(joined, place))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def context_limit(model: PreTrainedModel) -> int | None:
    """The longest context in tokens that the model is made for; None when it does not say.

    Rotary embeddings of the kinds `dynamic` and `longrope` take other frequencies once a context is longer than the
    model was trained with. A step holds contexts of all lengths, so they end where the frequencies would change.
    """
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        names = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any(isinstance(name, str) and changes_with_length(name) for name in names):
            limit = min(filter(None, (limit, *_trained_lengths(model.config))))
    return limit


def _trained_lengths(config: Any) -> list[int]:  # Any: a transformers config of any architecture
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    each = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
    return [part["original_max_position_embeddings"] for part in each if "original_max_position_embeddings" in part]


def weights_of(model: PreTrainedModel) -> int:
    """How many numbers the model's weights hold, packed ones too."""
    packed = (t for module in model.modules() if isinstance(module, PackedLinear) for t in module.shared())
    return sum(tensor.numel() for tensor in (*model.parameters(), *packed))


def with_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with a LoRA beside its linears. Every tensor of the base is shared, none is copied.

    Raises:
        ModelError: the adapter names a layer the base lacks, or is of a kind that is not a plain low-rank pair.
    """
    config = _adapter_config(folder / ADAPTER_CONFIG)
    pairs = _adapter_pairs(folder / ADAPTER_WEIGHTS)
    shared: dict[int, Any] = {id(t): t for t in (*base.parameters(), *base.buffers())}
    shared |= {id(t): t for m in base.modules() if isinstance(m, PackedLinear) for t in m.shared()}
    model = copy.deepcopy(base, shared)
    kinds = (PackedLinear, JoinedPart)
    linears: dict[str, Any] = {name: module for name, module in model.named_modules() if type(module) in kinds}
    for name, (a_RI, b_OR) in pairs.items():
        if name not in linears:
            raise ModelError(f"the adapter changes {name!r}, which is no linear layer of its base", where=str(folder))
        scale = _scale(config, name, a_RI.shape[0])
        linears[name].add_lora(LowRank(a_RI.to(base.device, base.dtype), b_OR.to(base.device, base.dtype), scale))
    return model


def _adapter_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    refused = [field for field in _REFUSED_ADAPTER_FIELDS if config.get(field)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        refused.append("peft_type" if config.get("peft_type") != "LORA" else "bias")
    # peft reads the keys as regular expressions: only those are taken that mean the same as plain names
    refused += [
        f"alpha_pattern {key!r}" for key in config.get("alpha_pattern") or {} if not _MODULE_NAME.fullmatch(key)
    ]
    if refused:
        raise ModelError(f"only plain LoRA adapters are served; this one sets {', '.join(refused)}", where=str(path))
    return config


def _adapter_pairs(path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name -> (A [r, in], B [out, r])."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as weights:
        for key in weights.keys():
            module, _, kind = key.removesuffix(".weight").rpartition(".")
            found.setdefault(module.removeprefix("base_model.model."), {})[kind] = weights.get_tensor(key)
    odd = [name for name, pair in found.items() if set(pair) != {"lora_A", "lora_B"}]
    if odd or not found:
        raise ModelError(f"not a set of LoRA pairs: {odd[:3] or 'empty'}", where=str(path))
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in found.items()}


def _scale(config: dict[str, Any], name: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv:2312.03732)."""
    own = (config.get("alpha_pattern") or {}).items()
    alpha = next((a for part, a in own if name == part or name.endswith(f".{part}")), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _no_memory(error: BaseException, folder: Path) -> ResourceError:
    """Lack of memory is no fault of the checkpoint: it is not marked bad and may be tried again."""
    fix = "lower inference.max_loaded, or free memory on the serving host"
    return ResourceError(f"not enough memory to load it: {_one_line(error)}", where=str(folder), fix=fix)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
