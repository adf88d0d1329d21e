"""The learning rate is a function of its place alone; formats and methods follow hardware and size."""

import logging

import pytest
import torch

from core.errors import ConfigError
from core.memory_estimate import method_for
from tiny_models import dials
from trainer.config import precision
from trainer.config.precision import bf16_gain, compute_dtype, faster_on_cpu


def test_the_rate_warms_up_once_in_a_run_and_is_constant_from_there() -> None:
    ours = dials(learning_rate=1.0, warmup_steps=4)
    assert [ours.rate_at(step, step, 100) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert ours.rate_at(1000, 0, 100) == 1.0


def test_decay_falls_in_a_straight_line_to_the_end_of_each_job_and_begins_again_in_the_next() -> None:
    ours = dials(learning_rate=1.0, schedule="decay")
    assert [ours.rate_at(step, step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert ours.rate_at(4, 0, 10) == 1.0


def test_lora_begins_at_three_hundred_million_parameters_unless_a_method_is_set() -> None:
    assert method_for(None, 299_999_999) == "full"
    assert method_for(None, 300_000_000) == "lora"
    assert method_for("full", 10**9) == "full"


def test_a_cpu_refuses_fp16_and_takes_what_is_named() -> None:
    assert compute_dtype("fp32", "cpu", "bf16") is torch.float32
    assert compute_dtype("bf16", "cpu", "fp32") is torch.bfloat16
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        compute_dtype("fp16", "cpu", "fp32")


def test_auto_is_what_the_probe_said_when_the_run_began() -> None:
    assert compute_dtype("auto", "cpu", "bf16") is torch.bfloat16
    assert compute_dtype("auto", "cpu", "fp32") is torch.float32


@pytest.mark.parametrize(("gain", "width", "expected"), [(2.1, 512, "bf16"), (0.1, 512, "fp32"), (2.1, 64, "fp32")])
def test_a_cpu_takes_bf16_where_its_products_are_faster_and_large_enough_to_matter(
    gain: float, width: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda _width: gain)
    assert faster_on_cpu(width) == expected


def test_a_cpu_that_is_slow_in_the_format_of_the_run_is_told_of_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda _width: 0.1)
    caplog.set_level(logging.WARNING)
    precision.tell(torch.float32, "cpu", 512)
    assert caplog.text == ""
    precision.tell(torch.bfloat16, "cpu", 512)
    assert "takes 10.0 times as long" in caplog.text
    assert "fp_precision=fp32" in caplog.text


def test_the_probe_measures_a_product_in_both_formats() -> None:
    assert 0.001 < bf16_gain(256) < 1000
