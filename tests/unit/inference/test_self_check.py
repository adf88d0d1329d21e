"""A model that this engine would answer for differently than its own forward is refused before it serves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.errors import ModelError
from inference.engine.attention import NAME, packed_attention
from inference.engine.loading import load_base
from inference.engine.runner import Runner
from inference.engine.self_check import TOKENS, check

IDS = [(37 * place) % 120 + 4 for place in range(40)]
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS_16 = {"head_dim": 16}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
BOTH = {"layer_types": ["sliding_attention", "full_attention"]}


def try_out(folder: Path, architecture: str, **more: Any) -> None:
    """Load an untrained model of the architecture as the server does, and let it be checked."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SIZES, **more)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)  # type: ignore[no-untyped-call]
    slices = load_base(folder, torch.device("cpu"))
    while True:
        try:
            next(slices)
        except StopIteration as end:
            network = end.value
            break
    for _ in check(network, Runner(network, 512), IDS):
        assert ALL_ATTENTION_FUNCTIONS[NAME] is packed_attention  # others compute between slices
    assert ALL_ATTENTION_FUNCTIONS[NAME] is packed_attention


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("llama", {}),
        ("qwen3", HEADS_16),
        ("qwen2", {"sliding_window": 10, "use_sliding_window": True, "max_window_layers": 1}),
        ("mistral", {"sliding_window": 10, **HEADS_16}),
        ("gemma2", {"sliding_window": 10, **HEADS_16}),
        ("gemma3_text", {"sliding_window": 500, **HEADS_16, **BOTH}),
        ("gemma3_text", {"sliding_window": 10, **HEADS_16, "layer_types": ["sliding_attention"] * 2}),
        ("gemma3_text", {"sliding_window": 10, **HEADS_16, "layer_types": ["full_attention"] * 2}),
        ("phi3", {"sliding_window": 10}),
        ("mixtral", {"sliding_window": 500, **EXPERTS}),
        ("olmo2", {}),
    ],
)
def test_architectures_that_are_served_right_pass(tmp_path: Path, architecture: str, more: dict[str, Any]) -> None:
    try_out(tmp_path, architecture, **more)


@pytest.mark.parametrize(
    ("architecture", "more", "why"),
    [
        ("gpt_oss", {**HEADS_16, **EXPERTS}, "other logits"),  # sinks
        ("bloom", {"n_layer": 2, "n_head": 4}, "other logits"),  # keys and values never reach this engine
        (
            "llama4_text",
            {**HEADS_16, **EXPERTS, "attention_chunk_size": 10 * TOKENS, "intermediate_size_mlp": 48},
            "in chunks",
        ),
        ("phimoe", {"sliding_window": 10 * TOKENS, **EXPERTS}, "only its masks know of its window"),
        (
            "qwen2_moe",
            {
                "sliding_window": 10 * TOKENS,
                "use_sliding_window": True,
                "max_window_layers": 1,
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
            },
            "only its masks know of its window",
        ),
    ],
)
def test_attention_that_this_engine_does_not_compute_is_refused_by_name(
    tmp_path: Path, architecture: str, more: dict[str, Any], why: str
) -> None:
    with pytest.raises(ModelError, match=f"'{architecture}' cannot be served: .*{why}"):
        try_out(tmp_path, architecture, **more)
