"""Where the judge computes."""

import pytest

from core.gpu import FakeGpuProbe, Gpu, GpuReading
from trainer.evaluate.device import choose, free_by_name, free_memory, needed_bytes

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


def test_auto_takes_the_gpu_that_nvml_says_is_free_by_torchs_own_numbering():
    """NVML counts all cards, torch only those it may use: the UUID says which is which."""
    gib = 1 << 30
    reading = FakeGpuProbe(
        GpuReading(
            (
                Gpu("GPU-aaaa", memory_total_bytes=24 * gib, memory_used_bytes=gib),
                Gpu("GPU-bbbb", memory_total_bytes=24 * gib, memory_used_bytes=23 * gib),
                Gpu("GPU-cccc", memory_total_bytes=24 * gib, memory_used_bytes=20 * gib),
                Gpu("GPU-dddd", state="lost"),
            )
        )
    ).read()
    free = free_by_name(["bbbb", "cccc", "dddd", "eeee"], reading)  # torch may not use the first
    assert free == {"cuda:0": gib, "cuda:1": 4 * gib}
    assert choose("auto", 3 * gib, free) == "cuda:1"
    assert choose("auto", int(4 * gib / 1.3) + 1, free) == "cpu"
    assert choose("auto", int(4 * gib / 1.3) - 1, free) == "cuda:1"
