"""Packed linears compute what plain ones do, and a row's bits do not depend on the rows computed with it."""

from collections.abc import Callable

import pytest
import torch

from inference.engine.layers import FEWEST_ROWS, LowRank, PackedLinear, pack, rows_computed

WIDTH = 1536  # where a single row has other last bits than several
Step = Callable[[PackedLinear, torch.Tensor, torch.Tensor], torch.Tensor]
STEPS: dict[str, Step] = {
    "linear": lambda layer, x, _: layer(x),
    "swish": lambda layer, x, _: layer.swish(x),
    "times": lambda layer, x, other: layer.times(x, other),
    "plus": lambda layer, x, other: layer.plus(x, other),
}
PLAIN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "linear": lambda y, _: y,
    "swish": lambda y, _: torch.nn.functional.silu(y),
    "times": lambda y, other: y * other,
    "plus": lambda y, other: y + other,
}


def layer(outputs: int, *, lora: bool, bias: bool = False) -> tuple[PackedLinear, torch.Tensor, torch.Tensor | None]:
    """A packed linear, the dense weight it stands for, and its bias."""
    random = torch.Generator().manual_seed(outputs)
    weight_OI = torch.randn(outputs, WIDTH, generator=random) / 40
    bias_O = torch.randn(outputs, generator=random) if bias else None
    pair = LowRank(torch.randn(4, WIDTH, generator=random) / 40, torch.randn(outputs, 4, generator=random), 0.5)
    packed, is_packed = pack(weight_OI)
    dense_OI = weight_OI + pair.b_OR @ pair.a_RI * pair.scale if lora else weight_OI
    return PackedLinear(packed, bias_O, is_packed, pair if lora else None), dense_OI, bias_O


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_what_follows_a_linear_is_computed_with_it(step: str, lora: bool, bias: bool) -> None:
    made, dense_OI, bias_O = layer(50, lora=lora, bias=bias)
    x, other = torch.randn(7, WIDTH), torch.randn(7, 50)
    expected = PLAIN[step](torch.nn.functional.linear(x, dense_OI, bias_O), other)
    with torch.inference_mode():
        assert torch.allclose(STEPS[step](made, x, other.clone()), expected, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("outputs", [48, 50, 512])
@pytest.mark.parametrize("step", STEPS)
def test_a_row_has_the_same_bits_among_any_number_of_rows(step: str, outputs: int, lora: bool) -> None:
    made, _, _ = layer(outputs, lora=lora)
    x, other = torch.randn(64, WIDTH), torch.randn(64, outputs)
    with torch.inference_mode():
        whole = STEPS[step](made, x, other.clone())
        for rows in (FEWEST_ROWS, 5, 6, 7, 8, 13, 33):
            few = STEPS[step](made, x[:rows].contiguous(), other[:rows].clone())
            assert few.numpy().tobytes() == whole[:rows].numpy().tobytes(), f"{rows} rows"


def test_steps_come_in_few_sizes_and_little_is_computed_in_vain() -> None:
    sizes = [rows_computed(rows) for rows in range(1, 1025)]
    assert len(set(sizes)) <= 61
    assert all(rows <= size <= max(FEWEST_ROWS, rows * 1.125) for rows, size in enumerate(sizes, start=1))
