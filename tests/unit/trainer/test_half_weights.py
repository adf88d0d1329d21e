"""bf16 products on fp32 weights: close to fp32, nothing else changes its format, nothing is stale."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tiny_models import dials, gemma, llama, qwen, rows
from trainer.engine import Engine
from trainer.models.lora import add_adapter
from trainer.packing import pack

BF16 = {"compute_dtype": torch.bfloat16}
BATCHES = pack(rows([40, 38, 33, 12, 12, 7, 3, 250]), 200)  # two micro-batches: gradients are added up


def _gradients(engine: Engine) -> tuple[float, dict[str, Tensor]]:
    engine.optimizer.zero_grad()
    loss = sum(float(engine.loss(batch, scale=0.01)) for batch in BATCHES)
    return loss, {name: p.grad.clone() for name, p in engine.trainable.items() if p.grad is not None}


@pytest.mark.parametrize("make", [qwen, llama, gemma])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_fp32_but_for_the_rounding_of_bf16(
    make: Callable[[], PreTrainedModel], checkpointing: bool
) -> None:
    expected, wanted = _gradients(Engine(make(), dials()))
    found, gradients = _gradients(Engine(make(), dials(**BF16, gradient_checkpointing=checkpointing)))
    assert found == pytest.approx(expected, rel=1e-3)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert (gradient - wanted[name]).norm() < 0.04 * wanted[name].norm(), name


def test_weights_and_moments_stay_fp32_and_in_their_place_under_their_names() -> None:
    engine = Engine(llama(), dials(**BF16))
    before = dict(engine.model.named_parameters())
    engine.step(BATCHES, 1e-2)
    after = dict(engine.model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert {t.dtype for t in engine.optimizer_tensors().values()} == {torch.float32}


def test_updates_too_small_for_bf16_add_up_in_the_weights() -> None:
    engine = Engine(qwen(), dials(**BF16))
    name = "model.layers.0.mlp.up_proj.weight"
    before = engine.trainable[name].detach().clone()
    for _ in range(4):
        engine.step(BATCHES, 1e-7)  # far below the eight bits of bf16
    moved = (engine.trainable[name].detach() - before).abs().median()
    assert 2e-7 < moved < 8e-7


def test_every_step_sees_the_weights_that_the_step_before_made() -> None:
    engine = Engine(qwen(), dials(**BF16))
    for _ in range(3):
        engine.step(BATCHES, 3e-2)
    seen = _gradients(engine)[0]
    assert seen == _gradients(Engine(engine.model, dials(**BF16)))[0]


def test_weights_loaded_from_outside_are_the_ones_the_next_step_sees() -> None:
    engine, other = Engine(qwen(), dials(**BF16)), Engine(qwen(seed=1), dials(**BF16))
    ours, theirs = _gradients(engine)[0], _gradients(other)[0]
    assert ours != theirs
    with torch.no_grad():
        for name, weight in engine.trainable.items():
            weight.copy_(other.trainable[name])
    assert _gradients(engine)[0] == theirs


def test_frozen_weights_under_an_adapter_get_no_gradient_and_the_adapter_learns() -> None:
    base = qwen()
    base.name_or_path = "base"
    model = add_adapter(base, rank=4, seed=0, base_folder=Path("base"))
    engine = Engine(model, dials(**BF16))
    losses = [engine.step(BATCHES, 3e-2).loss for _ in range(12)]
    assert losses[-1] < losses[0] - 0.15
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert all("lora_" in name for name in engine.trainable)


def test_a_frozen_weight_that_is_loaded_anew_is_the_one_the_next_step_sees() -> None:
    base = qwen()
    base.name_or_path = "base"
    engine = Engine(add_adapter(base, rank=4, seed=0, base_folder=Path("base")), dials(**BF16))
    before = _gradients(engine)[0]
    with torch.no_grad():
        engine.model.get_parameter("base_model.model.model.layers.0.mlp.down_proj.base_layer.weight").zero_()
    assert _gradients(engine)[0] != before


def test_an_error_in_the_middle_of_a_pass_leaves_the_fp32_weights_in_their_place() -> None:
    engine = Engine(qwen(), dials(**BF16))
    layer = engine.model.model.layers[1]
    layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step(BATCHES, 1e-2)
    assert {p.dtype for p in engine.model.parameters()} == {torch.float32}


def test_a_job_in_another_format_takes_over_the_same_weights() -> None:
    engine = Engine(qwen(), dials(**BF16))
    engine.step(BATCHES, 1e-2)
    engine.adopt(dials())
    exact = _gradients(engine)[0]
    engine.adopt(dials(**BF16))
    assert _gradients(engine)[0] != exact
    assert _gradients(engine)[0] == pytest.approx(exact, rel=1e-3)
