"""How much memory training will take, before it starts and without torch (beside queue -> trainer; `dropforge doctor`).

Reads    config.json and the headers of *.safetensors in a model folder; no weights
Units    bytes; T tokens of a micro-batch, E hidden size, V vocabulary
Errors   DataError when the folder has no config.json or none of the sizes in it

The sum of what a training step holds at its fullest: weights, gradients, AdamW's two moments, what the layers keep
for the backward pass, one chunk of logits, and, while a commit is written, a copy of what is trained. Checked against
measured peaks in docs/log.md ("Training").
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any  # config.json of any architecture

from core.atomic import read_json
from core.errors import DataError
from core.settings import Settings

LORA_FROM_PARAMETERS = 300_000_000
CPU_MICRO_BATCH_TOKENS = 4096  # more only costs memory (docs/log.md, "Training")
GPU_MICRO_BATCH_TOKENS = 16384
CHUNK_LOGITS = 1 << 22  # logits computed at once: 16 MiB in fp32 stay inside a shared cache of 32 MiB
MARGIN = 1.2
PROCESS_BYTES = 420_000_000  # Python, torch, transformers and peft, nothing loaded: measured on the CPU build
_FP32 = 4
_MOMENTS = 2
_KEYS = 192  # that a query looks at on average: in a chat corpus 142, in documents of 1,024 tokens 512
_NF4 = 0.52  # bytes a weight: 4 bits and their scales, quantized themselves (arXiv 2305.14314, section 3)
_LORA_TEMPORARIES = 1.4  # measured: with what the allocator leaves unused, so many times what they keep
_LOGIT_BUFFERS = 3  # logits, their log-softmax, one temporary


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that memory depends on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int  # of the queries
    query: int  # heads x channels
    key_value: int  # key heads x channels
    vocabulary: int


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes by purpose, at the fullest moment of an optimizer step."""

    process: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    snapshot: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def with_margin(self) -> int:
        """What must be free before it is started."""
        return int(self.total * MARGIN)


def shape_of(folder: Path) -> ModelShape:
    """Read a model folder. Raises DataError or StorageError."""
    config = read_json(folder / "config.json")
    text = config.get("text_config") or config
    try:
        heads = int(text["num_attention_heads"])
        channels = int(text.get("head_dim") or text["hidden_size"] // heads)
        key_heads = int(text.get("num_key_value_heads") or heads)
        shape = {
            "layers": int(text["num_hidden_layers"]),
            "hidden": int(text["hidden_size"]),
            "intermediate": int(text["intermediate_size"]),
            "heads": heads,
            "query": heads * channels,
            "key_value": key_heads * channels,
            "vocabulary": int(text["vocab_size"]),
        }
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"config.json does not say the model's size: {error}", where=str(folder)) from error
    return ModelShape(_parameters(folder) or _parameters_of(shape, bool(text.get("tie_word_embeddings"))), **shape)


def _parameters(folder: Path) -> int:
    """Weights counted from the files' headers; 0 when there are none."""
    total = 0
    for file in folder.glob("model*.safetensors"):
        with file.open("rb") as data:
            (length,) = struct.unpack("<Q", data.read(8))
            header: Mapping[str, Any] = json.loads(data.read(length))
        total += sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def _parameters_of(shape: Mapping[str, int], tied: bool) -> int:
    per_layer = shape["hidden"] * (2 * shape["query"] + 2 * shape["key_value"] + 3 * shape["intermediate"])
    return shape["layers"] * per_layer + shape["vocabulary"] * shape["hidden"] * (1 if tied else 2)


def method_for(wanted: str | None, parameters: int) -> str:
    """`full` or `lora`: as set, else LoRA from 300 M parameters up."""
    if wanted is not None:
        return wanted
    return "lora" if parameters >= LORA_FROM_PARAMETERS else "full"


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Weights of LoRA matrices on every linear layer but the vocabulary head: rank x (inputs + outputs) each."""
    attention = 2 * (shape.hidden + shape.query) + 2 * (shape.hidden + shape.key_value)
    return shape.layers * rank * (attention + 3 * (shape.hidden + shape.intermediate))


def needed(
    shape: ModelShape,
    settings: Settings,
    *,
    micro_batch_tokens: int = CPU_MICRO_BATCH_TOKENS,
    row_tokens: int | None = None,
) -> MemoryNeed:
    """Estimate a training step with these settings, in fp32; products in bf16 need less.

    Args:
        row_tokens: tokens of an average row, which with the rows of a step bounds a micro-batch; None: it is full.
    """
    trainer, hyper = settings.trainer, settings.hyperparams
    lora = method_for(trainer.method, shape.parameters) == "lora"
    trained = adapter_parameters(shape, trainer.lora_rank) if lora else shape.parameters
    tokens = max(micro_batch_tokens, hyper.max_length)
    if row_tokens is not None:
        tokens = min(tokens, row_tokens * hyper.batch_size * hyper.gradient_accumulation)
    kept = _kept_per_token(shape, settings, lora)
    head = 0 if lora else shape.vocabulary * shape.hidden  # the head's own gradient, beside the embedding's
    logits = min(CHUNK_LOGITS, tokens * shape.vocabulary) * _LOGIT_BUFFERS + 2 * tokens * shape.hidden + head
    return MemoryNeed(
        process=PROCESS_BYTES,
        weights=_base_bytes(shape, trainer.quantize) + _FP32 * (trained if lora else 0),
        gradients=_FP32 * trained,
        optimizer=_FP32 * _MOMENTS * trained,
        activations=_FP32 * tokens * kept,
        logits=_FP32 * logits,
        snapshot=_FP32 * (1 + _MOMENTS) * trained,
    )


def _base_bytes(shape: ModelShape, quantize: str | None) -> int:
    """Weights in memory: embedding and head stay as they are when the linear layers are quantized."""
    if quantize is None:
        return _FP32 * shape.parameters
    table = min(shape.vocabulary * shape.hidden, shape.parameters)
    return int(_FP32 * table + _NF4 * (shape.parameters - table))


def _kept_per_token(shape: ModelShape, settings: Settings, lora: bool) -> int:
    """Numbers that the layers keep for the backward pass, for each token.

    A layer of the Llama family as transformers writes it: both norms keep input, normalised input and output (6 E);
    attention keeps normed and rotated queries and keys, values, its output twice, and the probabilities of the keys a
    query looks at; the gated MLP keeps gate, up, their activation, product.
    """
    keys = min(settings.hyperparams.max_length // 2, _KEYS)
    attention = 5 * shape.query + 4 * shape.key_value + shape.heads * keys
    layer = 6 * shape.hidden + attention + 4 * shape.intermediate
    if lora:
        layer = int((layer + 7 * settings.trainer.lora_rank) * _LORA_TEMPORARIES)
    if settings.trainer.gradient_checkpointing:
        return shape.layers * shape.hidden + layer
    return shape.layers * layer + 2 * shape.intermediate


def advice(need: MemoryNeed, available_bytes: int, settings: Settings, parameters: int) -> str | None:
    """None when it fits with the margin, else the change that frees most."""
    if need.with_margin <= available_bytes:
        return None
    changes = {"take a smaller base model, or a machine with more memory": 0}
    if method_for(settings.trainer.method, parameters) == "full":
        changes["set trainer.method to lora"] = need.gradients + need.optimizer + need.snapshot
    if not settings.trainer.gradient_checkpointing:
        changes["set trainer.gradient_checkpointing to true"] = need.activations
    return max(changes, key=lambda change: changes[change])
