"""The gate lets a sound checkpoint pass and stops each kind of unsound one, naming what is wrong."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.checkpoints import MANIFEST_FILE
from core.errors import GateFailedError, ModelError
from inference.engine.attention import attend
from inference.engine.runner import Runner
from inference.generation import Canary, Chunk, StepResult
from inference.inspection import StoredCheckpoint
from inference.model_slot import GateReport, Loader, ModelSlot, pass_gate
from serving_rig import commit_adapter, ready_root

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c d"}]}


def finish(work: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture
def stored(tmp_path: Path) -> StoredCheckpoint:
    _, (checkpoint,) = ready_root(tmp_path / "root", (0,), scale=2.0)
    (checkpoint.folder / MANIFEST_FILE).touch()
    return StoredCheckpoint(checkpoint.folder, checkpoint.manifest)


def load(stored: StoredCheckpoint) -> ModelSlot:
    slot = finish(Loader("cpu").load(stored, None))
    assert isinstance(slot, ModelSlot)
    return slot


def change_weights(stored: StoredCheckpoint, change: Any) -> None:
    path = stored.folder / "model.safetensors"
    save_file({name: change(name, tensor) for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def gate(slot: ModelSlot, *canaries: Canary, rival: ModelSlot | None = None) -> GateReport:
    report = finish(pass_gate(slot, canaries, rival))
    assert isinstance(report, GateReport)
    return report


def judged_loss(slot: ModelSlot) -> float:
    with pytest.raises(GateFailedError, match="canary loss") as caught:
        gate(slot, Canary(ROW, -100.0))
    return float(str(caught.value).split()[2])


def test_a_sound_checkpoint_passes_and_its_loss_is_reported(stored: StoredCheckpoint) -> None:
    slot = load(stored)
    assert gate(slot).tokens == 8
    report = gate(slot, Canary(ROW, judged_loss(slot)), rival=slot)
    assert report.canaries == 1
    assert report.loss == pytest.approx(report.expected_loss, abs=1e-3)


def test_other_weights_than_the_judged_ones_are_noticed(stored: StoredCheckpoint) -> None:
    loss = judged_loss(load(stored))
    change_weights(stored, lambda name, tensor: tensor * 1.5 if "mlp.down" in name else tensor)
    with pytest.raises(GateFailedError, match="not the weights that were judged"):
        gate(load(stored), Canary(ROW, loss + 0.2))


def test_one_wrong_canary_is_enough_and_one_the_judge_cut_short_is_left_out(stored: StoredCheckpoint) -> None:
    slot = load(stored)
    right, cut = Canary(ROW, judged_loss(slot)), Canary(ROW, 0.1, tokens=2)
    assert gate(slot, right, cut).canaries == 1
    with pytest.raises(GateFailedError, match="canary loss"):
        gate(slot, right, Canary(ROW, right.loss + 1))


def test_long_rows_of_the_judge_are_left_out_once_short_ones_were_read(stored: StoredCheckpoint) -> None:
    slot = load(stored)
    long = Canary({"messages": [{"role": "user", "content": "word " * 400}, ROW["messages"][1]]}, 0.1)
    right = Canary(ROW, judged_loss(slot))
    assert gate(slot, long, right, right).canaries == 2
    with pytest.raises(GateFailedError, match="canary loss"):
        gate(slot, long)


def test_the_gate_reads_long_rows_in_slices_and_measures_the_same_loss(
    stored: StoredCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = load(stored)
    long = {"messages": [{"role": "user", "content": "word " * 400}, ROW["messages"][1]]}
    encoded = slot.encoder.encode_row(long)
    ids, trained = torch.from_numpy(encoded.ids).long(), torch.from_numpy(encoded.mask).bool()
    model = AutoModelForCausalLM.from_pretrained(stored.folder, dtype=torch.float32)
    with torch.inference_mode():
        nats = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
    sizes: list[int] = []
    step = Runner.step

    def counted(self: Runner, decode: dict[int, int], chunks: Sequence[Chunk]) -> StepResult:
        sizes.extend(len(chunk.ids) for chunk in chunks)
        return step(self, decode, chunks)

    monkeypatch.setattr(Runner, "step", counted)
    report = gate(slot, Canary(long, float(nats[trained[1:]].mean())))
    assert report.loss == pytest.approx(report.expected_loss, abs=1e-3)
    assert sum(sizes) > len(ids) > 800
    assert max(sizes) <= 64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_stopped(stored: StoredCheckpoint, value: float) -> None:
    change_weights(stored, lambda name, tensor: torch.full_like(tensor, value) if "layers.1.mlp" in name else tensor)
    with pytest.raises(GateFailedError, match="not finite"):
        gate(load(stored))


def test_garbage_weights_are_stopped_without_any_canary(stored: StoredCheckpoint) -> None:
    change_weights(stored, lambda name, tensor: torch.randn_like(tensor) * 30)
    with pytest.raises(GateFailedError, match="garbage"):
        gate(load(stored))


def test_a_model_ten_times_slower_than_the_serving_one_is_stopped(
    stored: StoredCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, rival = load(stored), load(stored)
    seconds = iter([0.0, 1.0] * 7 + [0.0, 0.01] * 3)
    monkeypatch.setattr("inference.model_slot.time.perf_counter", lambda: next(seconds))
    with pytest.raises(GateFailedError, match="the serving model needs 10"):
        gate(slot, rival=rival)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chat_template.jinja", "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"),
        ("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        ("chat_template.jinja", "{{ messages"),
        ("chat_template.jinja", "nothing of the messages"),
        ("tokenizer.json", "{}"),
        ("config.json", '{"model_type": "nosuch"}'),
        ("config.json", '{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 8}'),
    ],
)
def test_templates_and_configurations_that_cannot_work_are_refused_with_the_reason(
    stored: StoredCheckpoint, name: str, text: str
) -> None:
    (stored.folder / name).write_text(text)
    with pytest.raises(ModelError):
        load(stored)


def test_a_second_adapter_shares_its_base(tmp_path: Path) -> None:
    workspace, (base,) = ready_root(tmp_path / "root", (0,))
    first = commit_adapter(workspace, 1, base, base)
    second = commit_adapter(workspace, 2, first, base)
    loader = Loader("cpu")
    whole = StoredCheckpoint(base.folder, base.manifest)
    slots = [finish(loader.load(StoredCheckpoint(c.folder, c.manifest), whole)) for c in (first, second)]
    assert slots[0].base is slots[1].base
    assert loader.holds(whole.weights_sha256)
    assert [gate(slot).tokens for slot in slots] == [8, 8]
    del slots
    assert not loader.holds(whole.weights_sha256)


def test_a_checkpoint_trained_with_a_profile_that_is_not_known_here_is_refused(stored: StoredCheckpoint) -> None:
    manifest = {**stored.manifest, "profile": "emoji_think"}
    with pytest.raises(ModelError, match="profile 'emoji_think', which this server does not know"):
        load(StoredCheckpoint(stored.folder, manifest))


def test_a_checkpoint_that_would_be_computed_otherwise_here_is_not_even_loaded(
    stored: StoredCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend_too_sharply(*how: Any) -> torch.Tensor:
        plan, layer, query, *rest = how
        return attend(plan, layer, query * 1.05, *rest)

    monkeypatch.setattr("inference.engine.decoder.attend", attend_too_sharply)
    with pytest.raises(ModelError, match="other logits than its own forward"):
        load(stored)
