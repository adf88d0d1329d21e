"""Small models and rows for the trainer's tests."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer.config.dials import Dials
from trainer.packing import Row

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def qwen(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))


def llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))


def gemma(seed: int = 0) -> PreTrainedModel:
    """Sliding windows of 8 tokens in all layers but the last."""
    torch.manual_seed(seed)
    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, sliding_window=8, layer_types=layers))


def dials(**changes: object) -> Dials:
    known = {
        "device": "cpu",
        "compute_dtype": torch.float32,
        "learning_rate": 1e-2,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "grad_clip": 1.0,
        "rows_per_step": 8,
        "micro_batch_tokens": 4096,
        "default_micro_batch_tokens": 4096,
        "gradient_checkpointing": False,
    }
    return Dials(**(known | changes))


def rows(lengths: Sequence[int], seed: int = 0) -> list[Row]:
    """Random rows whose second half is trained."""
    random = np.random.default_rng(seed)
    return [
        Row(random.integers(1, VOCABULARY, length).astype(np.int32), np.arange(length) >= length // 2)
        for length in lengths
    ]
