"""Where the judge computes."""

import pytest

from trainer.evaluate.device import choose, free_memory, needed_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("wanted", "free", "device"),
    [
        ("auto", {}, "cpu"),
        ("auto", {"cuda:0": 10 * GIB}, "cpu"),
        ("auto", {"cuda:0": 13 * GIB}, "cuda:0"),
        ("auto", {"cuda:0": 14 * GIB, "cuda:1": 20 * GIB}, "cuda:1"),
        ("cpu", {"cuda:0": 90 * GIB}, "cpu"),
        ("cuda:1", {}, "cuda:1"),
        ("cuda", {}, "cuda:0"),
    ],
)
def test_a_gpu_is_taken_only_when_a_third_more_than_the_need_is_free(wanted, free, device):
    assert choose(wanted, 10 * GIB, free) == device


def test_the_need_counts_weights_alone_and_twice():
    files = {"model.safetensors": {"bytes": 3 * GIB}, "tokenizer.json": {"bytes": 50 * GIB}}
    assert 6 * GIB < needed_bytes([{"files": files}]) < 7 * GIB


def test_without_a_driver_there_is_no_device_to_ask(monkeypatch):
    monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: iter(()))
    monkeypatch.setattr("pathlib.Path.exists", lambda self: False)
    assert free_memory() == {}
