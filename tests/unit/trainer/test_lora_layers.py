"""Our arithmetic of an adapter's layer against peft's own: same outputs, same gradients, in every way it is called."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from tiny_models import dials, qwen, rows
from trainer.engine import Engine
from trainer.models.lora import LeanLinear, add_adapter
from trainer.packing import pack

_INPUTS, _OUTPUTS = 12, 20


def _layers(*, bias: bool) -> tuple[Linear, LeanLinear]:
    """peft's layer and ours, with the same weights."""
    torch.manual_seed(0)
    base = nn.Linear(_INPUTS, _OUTPUTS, bias=bias).requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False)
    theirs, ours = (layer(base, "default", config=config, r=4, lora_alpha=8) for layer in (Linear, LeanLinear))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _results(layer: Linear, given: Tensor, returned: Tensor) -> list[Tensor]:
    """The output, and the gradients of input, A and B."""
    given = given.clone().requires_grad_()
    out = layer(given)
    wanted = [given, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return [out, *torch.autograd.grad(out, wanted, returned)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7)])
def test_outputs_and_gradients_are_those_of_pefts_own_layer(bias: bool, shape: tuple[int, ...]) -> None:
    theirs, ours = _layers(bias=bias)
    given, returned = torch.randn(*shape, _INPUTS), torch.randn(*shape, _OUTPUTS)
    for found, expected in zip(_results(ours, given, returned), _results(theirs, given, returned), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_a_layer_whose_adapter_is_switched_off_or_merged_gives_what_pefts_gives() -> None:
    theirs, ours = _layers(bias=True)
    given = torch.randn(3, _INPUTS)
    for layer in (theirs, ours):
        layer.enable_adapters(False)
    torch.testing.assert_close(ours(given), theirs(given), atol=0, rtol=0)
    for layer in (theirs, ours):
        layer.enable_adapters(True)
    before = ours(given)
    ours.merge()
    torch.testing.assert_close(ours(given), before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_under_an_adapter_has_the_gradients_of_pefts_own_layers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = rows([40, 33, 12])
    found = []
    for forward in (LeanLinear.forward, Linear.forward):
        monkeypatch.setattr(LeanLinear, "forward", forward)
        model = qwen()
        model.name_or_path = "base"
        engine = Engine(add_adapter(model, rank=4, seed=0, base_folder=Path("base")), dials(compute_dtype=dtype))
        torch.manual_seed(1)
        for weight in engine.trainable.values():
            weight.data += 0.1 * torch.randn_like(weight)
        loss = sum(float(engine.loss(batch, scale=0.01)) for batch in pack(given, 4096))
        found.append((loss, {name: p.grad for name, p in engine.trainable.items()}))
    (ours, gradients), (theirs, expected) = found
    exact = dtype == torch.float32
    assert ours == pytest.approx(theirs, abs=1e-6 if exact else 1e-3)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-7 if exact else 2e-3, rtol=0)
