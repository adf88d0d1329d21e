"""The memory of keys and values stays within what was set aside, whatever comes, goes and stays on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from core.chat_templates import ChatEncoder
from core.errors import OverloadedError
from inference.engine import room
from inference.engine.cache import KeyValueMemory
from inference.engine.loading import load_base
from inference.engine.runner import Runner
from inference.metrics import ServerMetrics
from inference.sampling import Sampling
from inference.scheduler import Scheduler
from inference.ticket import Ticket
from trainer.models.tiny import make_tiny

GIB = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("room")
    make_tiny(made, seed=1)
    return made


@pytest.fixture(scope="module")
def network(folder: Path) -> PreTrainedModel:
    loading = load_base(folder, torch.device("cpu"))
    while True:
        try:
            next(loading)
        except StopIteration as end:
            return end.value


def held_bytes(memory: KeyValueMemory) -> int:
    """What the tensors of all contexts take now."""
    owners = [*memory.shelves.values(), *memory.blocks.values()]
    tensors = {t.data_ptr(): t for o in owners for kind in (o.keys, o.values) for t in kind.values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def test_a_crowd_of_long_requests_stays_within_the_memory_set_aside_and_the_rest_is_refused(
    network: PreTrainedModel, folder: Path
) -> None:
    tokens = 1500
    model = Runner(network, 512, tokens)
    machine = Scheduler(max_streams=64, max_waiting=40, metrics=ServerMetrics())
    codec, dice = ChatEncoder.from_folder(folder), np.random.default_rng(3)
    refused, most, running = 0, 0, 0
    for _ in range(150):
        for _ in range(int(dice.integers(0, 3))):
            prompt = dice.integers(5, 1000, int(dice.integers(1, 300))).tolist()
            limit = int(dice.integers(1, 150))
            sampling = Sampling(seed=1, logit_bias=dict.fromkeys(codec.eos_ids, -100.0))
            one = Ticket(model, codec, prompt, sampling=sampling, max_tokens=limit, open_ended=bool(dice.integers(2)))
            try:
                machine.submit(one)
            except OverloadedError:
                refused += 1
        machine.tick()
        most, running = max(most, held_bytes(model._memory)), max(running, machine.running)
    assert refused > 0
    assert running > 3
    assert most <= room._TOKENS_HELD_A_TOKEN * tokens * room.token_bytes(network)


def test_what_is_set_aside_follows_free_memory_and_a_containers_limit(
    network: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    config = network.config
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert room.token_bytes(network) == each
    free = room.tokens_that_fit(network)
    assert free > 1000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert room.tokens_that_fit(network) > 1000
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 2}\n")
    assert room.tokens_that_fit(network) == int(0.4 * (GIB // 2)) // (3 * each)
    (tmp_path / "memory.current").write_text(f"{2 * GIB}\n")
    assert room.tokens_that_fit(network) == 1
