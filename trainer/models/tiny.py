"""The embedded base model `dropforge-tiny`: what the arrow `queue -> trainer` starts from when no model is configured.

Writes   tokenizer (see tiny_tokenizer), config.json, generation_config.json, then model.safetensors, in that order:
         a folder without model.safetensors is one to make again
Format   Qwen3ForCausalLM, 230,080 float32 weights, random: it knows nothing until it has been trained
Errors   StorageError (4xxx) when the folder cannot be written
Used by  trainer.models.load, before checkpoint-0 is imported; tests, as the fake model of the house
"""

from pathlib import Path

import torch
from safetensors.torch import save
from transformers import Qwen3Config, Qwen3ForCausalLM

from core.atomic import write_bytes, write_json
from trainer.models.tiny_tokenizer import SPECIAL_TOKENS, TURN_END, VOCABULARY, write_tokenizer

MODEL_NAME = "dropforge-tiny"
WEIGHTS_FILE = "model.safetensors"


def tiny_config() -> Qwen3Config:
    """The shape of the embedded model. Token ids follow the order of SPECIAL_TOKENS.

    Shifting bits needs induction (find what follows the bits already copied), which takes two layers; three or four
    gave the same score at the same number of weights (docs/log.md, "Demo").
    """
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(TURN_END),
        pad_token_id=0,
        dtype="float32",
    )


def make_tiny(folder: Path, seed: int) -> None:
    """Write the embedded model with random weights into `folder`.

    Args:
        folder: made when missing; files of an earlier or broken attempt are replaced.
        seed: the same seed gives the same bytes; the caller's own random state is left as it was.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    write_tokenizer(folder)
    config = tiny_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    config.architectures = ["Qwen3ForCausalLM"]
    answers = {
        "do_sample": False,
        "eos_token_id": config.eos_token_id,
        "max_new_tokens": 256,
        "pad_token_id": config.pad_token_id,
    }
    write_bytes(folder / "config.json", config.to_json_string(use_diff=False).encode())
    write_json(folder / "generation_config.json", answers)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    write_bytes(folder / WEIGHTS_FILE, save(weights, metadata={"format": "pt"}))
