"""The memory estimate adds up what training holds, and says what to change when it does not fit."""

import json
from pathlib import Path

import pytest

from core.errors import DataError
from core.memory_estimate import ModelShape, adapter_parameters, advice, needed, shape_of
from core.settings import Settings, settings_from

SHAPE = ModelShape(
    parameters=600_000_000,
    layers=28,
    hidden=1024,
    intermediate=3072,
    heads=16,
    query=2048,
    key_value=1024,
    vocabulary=151_936,
)

FULL = {"method": "full"}


def _settings(**trainer: object) -> Settings:
    return settings_from({"trainer": trainer}, "test")


def test_full_fine_tuning_holds_weights_gradients_moments_and_a_snapshot_of_them() -> None:
    need = needed(SHAPE, _settings(method="full"))
    assert need.weights == need.gradients == 4 * SHAPE.parameters
    assert need.optimizer == 2 * need.weights
    assert need.snapshot == 3 * need.weights
    assert need.with_margin == pytest.approx(1.2 * need.total, abs=1)


def test_lora_holds_moments_of_the_adapter_alone() -> None:
    need = needed(SHAPE, _settings(lora_rank=16))
    adapter = adapter_parameters(SHAPE, 16)
    assert adapter < SHAPE.parameters / 20
    assert (need.gradients, need.optimizer) == (4 * adapter, 8 * adapter)


def test_a_base_in_four_bits_keeps_its_embedding_and_shrinks_its_layers() -> None:
    plain, small = (needed(SHAPE, _settings(method="lora", quantize=q)).weights for q in (None, "nf4"))
    table = SHAPE.vocabulary * SHAPE.hidden
    adapter = 4 * adapter_parameters(SHAPE, 16)
    assert plain - adapter == 4 * SHAPE.parameters
    assert (small - adapter - 4 * table) / (SHAPE.parameters - table) == pytest.approx(0.52, abs=0.001)


def test_an_adapter_needs_more_on_its_way_than_the_weights_it_saves() -> None:
    full, lora = (needed(SHAPE, _settings(method=method)).activations for method in ("full", "lora"))
    assert 1.35 < lora / full < 1.5


def test_recomputed_activations_and_smaller_micro_batches_need_less() -> None:
    plain = needed(SHAPE, _settings())
    assert needed(SHAPE, _settings(gradient_checkpointing=True)).activations < plain.activations / 10
    assert needed(SHAPE, _settings(), micro_batch_tokens=2048).activations == plain.activations // 2


def test_longer_documents_keep_more_probabilities_of_attention_up_to_a_bound() -> None:
    short, long, longest = (
        needed(SHAPE, settings_from({"hyperparams": {"max_length": n}, "trainer": FULL}, "test")).activations
        for n in (64, 512, 2048)
    )
    per_key = 4 * 4096 * SHAPE.layers * SHAPE.heads
    assert long - short == per_key * (192 - 32)
    assert longest == long


def test_the_advice_names_the_change_that_helps_most() -> None:
    full, lora = _settings(method="full"), _settings(method="lora")
    done = _settings(method="lora", gradient_checkpointing=True)
    assert advice(needed(SHAPE, full), 10**12, full, SHAPE.parameters) is None
    short = needed(SHAPE, full, micro_batch_tokens=256)
    assert "trainer.method to lora" in str(advice(short, 10**9, full, SHAPE.parameters))
    assert "gradient_checkpointing" in str(advice(needed(SHAPE, lora), 10**9, lora, SHAPE.parameters))
    assert "smaller base model" in str(advice(needed(SHAPE, done), 10**9, done, SHAPE.parameters))


def test_a_folder_without_weights_is_sized_by_its_config_alone(tmp_path: Path) -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 100, "tie_word_embeddings": True}))
    shape = shape_of(tmp_path)
    assert (shape.query, shape.key_value) == (64, 64)
    assert shape.parameters == 2 * 64 * (4 * 64 + 3 * 128) + 100 * 64


def test_a_config_without_sizes_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="num_attention_heads"):
        shape_of(tmp_path)
