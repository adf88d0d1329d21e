"""What an adapter's own scales mean, and where contexts of models with changing frequencies end."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from core.errors import ModelError
from inference.engine.loading import context_limit, load_base, with_adapter
from inference.engine.runner import Runner
from inference.generation import Chunk
from tiny_models import llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is_gradient_checkpointing.*:FutureWarning")
IDS = list(range(1, 40))


def loaded(folder: Path) -> PreTrainedModel:
    slices = load_base(folder, torch.device("cpu"))
    while True:
        try:
            next(slices)
        except StopIteration as end:
            model: PreTrainedModel = end.value
            return model


def adapter(model: PreTrainedModel, folder: Path, **scales: Any) -> torch.Tensor:
    """Save an adapter with these scales. Returns its logits after IDS, by peft."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **scales)
    torch.manual_seed(0)
    get_peft_model(copy.deepcopy(model), config).save_pretrained(folder)
    adapted = PeftModel.from_pretrained(copy.deepcopy(model), folder)  # it saves the scales in another order
    with torch.no_grad():
        logits: torch.Tensor = adapted(torch.tensor([IDS])).logits[0, -1]
    return logits


def served(model: PreTrainedModel) -> torch.Tensor:
    runner = Runner(model, 512)
    context, _ = runner.open(())
    return torch.from_numpy(runner.step({}, [Chunk(context, IDS, last=True)]).logits[context])


@pytest.mark.parametrize(
    "pattern",
    [
        {},
        {"q_proj": 64},
        {"v_proj": 64, "layers.0.self_attn.v_proj": 2},
        {"layers.0.self_attn.v_proj": 2, "v_proj": 64},
    ],
)
def test_scales_of_single_layers_mean_what_they_mean_to_peft(tmp_path: Path, pattern: dict[str, int]) -> None:
    model = llama(3).eval()
    model.save_pretrained(tmp_path / "base")
    plain = adapter(model, tmp_path / "plain")
    expected = adapter(model, tmp_path / "adapter", alpha_pattern=pattern)
    found = served(with_adapter(loaded(tmp_path / "base"), tmp_path / "adapter"))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not pattern or not torch.allclose(expected, plain, atol=1e-3)


def test_scales_by_regular_expression_are_refused_and_not_read_as_names(tmp_path: Path) -> None:
    model = llama(3).eval()
    model.save_pretrained(tmp_path / "base")
    adapter(model, tmp_path / "adapter", alpha_pattern={r"layers\.0\..*q_proj": 64})
    with pytest.raises(ModelError, match="alpha_pattern"):
        with_adapter(loaded(tmp_path / "base"), tmp_path / "adapter")


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(("rope", "tokens"), [(LONGROPE, 64), (YARN, 256), (None, 256)])
def test_contexts_end_before_the_frequencies_of_their_neighbours_would_change(
    rope: dict[str, Any] | None, tokens: int
) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        rope_parameters=rope,
    )
    assert context_limit(LlamaForCausalLM(config)) == tokens
