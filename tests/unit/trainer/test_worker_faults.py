"""Poison, damage and lack of memory cost the job at fault, never the weights."""

import dataclasses
import json
import resource
from collections.abc import Callable

import numpy as np
import pytest
import torch

from core.errors import CheckpointError, ConfigError, StorageError
from scripts.reliability.training_farm import TrainingFarm, chats, same, tick_until_step, weights_in, weights_of
from trainer.config import dials
from trainer.worker import Worker

MakeFarm = Callable[..., TrainingFarm]


def test_a_quantized_base_is_refused_in_one_line_before_anything_is_loaded(make_farm: MakeFarm) -> None:
    farm = make_farm()
    config = farm.workspace.root / "models" / "dropforge-tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gguf"}}))
    with pytest.raises(ConfigError, match=r"config\.json: the base model is quantized.*fix: name an unquantized base"):
        farm.worker()


def test_a_poisoned_file_fails_by_its_lines_and_leaves_weights_as_they_were(
    make_farm: MakeFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make_farm(trainer={"checkpoint_every_steps": 1})
    farm.drop(chats(8))
    worker = farm.train()
    before = weights_in(worker.run)
    poison = farm.drop(chats(8, first=40), "poison.jsonl")
    tick_until_step(worker, 6)
    engine = worker.run.engine_ready()
    real = engine.loss
    marked = farm.encoder.encode_row(chats(1, first=43)[0]).ids.tolist()

    def poisoned(batch, **how):  # type: ignore[no-untyped-def]
        loss = real(batch, **how)
        documents = np.split(batch.ids_T, np.cumsum(batch.layout.lengths)[:-1])
        return loss * (float("nan") if marked in [d.tolist() for d in documents] else 1.0)

    monkeypatch.setattr(engine, "loss", poisoned)
    farm.train(worker)
    verdict = farm.queue.find(poison.job_id).verdict()
    assert (verdict["state"], verdict["code"]) == ("failed", "non_finite_loss")
    assert "poison.jsonl, lines 4" in verdict["message"]
    assert same(weights_in(worker.run), before)
    assert poison.job_id not in {job for job, _, _ in farm.passes()}


def test_a_file_that_changed_since_its_claim_is_held_and_not_trained(make_farm: MakeFarm) -> None:
    farm = make_farm()
    job = farm.drop(chats(8))
    with job.data_file.open("a") as late:
        late.write("late bytes\n")
    farm.train()
    assert farm.lane("held") == [job.job_id]
    assert farm.queue.find(job.job_id).verdict()["code"] == "changed_after_claim"
    assert farm.head().step == 0


def _out_of_memory_above(worker: Worker, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every micro-batch over so many tokens fail as torch's CPU allocator does."""
    engine = worker.run.engine_ready()
    real = engine.loss

    def greedy(batch, **how):  # type: ignore[no-untyped-def]
        if len(batch.ids_T) > tokens:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return real(batch, **how)

    monkeypatch.setattr(engine, "loss", greedy)


def test_out_of_memory_goes_back_to_the_commit_and_on_with_half_the_micro_batch(
    make_farm: MakeFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dials, "CPU_MICRO_BATCH_TOKENS", 256)
    easy, tight = make_farm("easy"), make_farm("tight")
    for farm in (easy, tight):
        farm.drop(chats(10))
    easy.train()
    worker = tight.worker()
    tick_until_step(worker, 2)
    _out_of_memory_above(worker, 60, monkeypatch)
    tight.train(worker)
    assert worker.run.state.micro_batch_tokens == 32
    assert sorted(tight.passes()) == sorted((tight.lane("done")[0], r, e) for r in range(10) for e in range(2))
    for name, tensor in weights_of(easy.head()).items():  # the effective batch is the same, its sums' last bits are not
        torch.testing.assert_close(weights_of(tight.head())[name].float(), tensor.float(), atol=1e-3, rtol=1e-2)
    assert tight.worker().run.state.micro_batch_tokens == 32  # it travels in the checkpoint


def test_out_of_memory_after_three_halvings_fails_the_job_and_undoes_it(
    make_farm: MakeFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make_farm()
    job = farm.drop(chats(10))
    worker = farm.worker()
    _out_of_memory_above(worker, 0, monkeypatch)
    farm.train(worker)
    verdict = farm.queue.find(job.job_id).verdict()
    assert (verdict["state"], verdict["code"]) == ("failed", "out_of_memory")
    assert (farm.head().step, worker.run.state.micro_batch_tokens) == (0, None)


def test_after_a_kill_for_want_of_memory_the_smallest_micro_batches_are_taken_and_recorded(make_farm: MakeFarm) -> None:
    farm = make_farm()
    job = farm.drop(chats(10))
    farm.order("run", careful=True)
    worker = farm.train()
    assert worker.run.state.micro_batch_tokens == dials.CPU_MICRO_BATCH_TOKENS // 8
    assert farm.lane("done") == [job.job_id]
    assert farm.worker().run.state.micro_batch_tokens == dials.CPU_MICRO_BATCH_TOKENS // 8


def _losses_jump_at(worker: Worker, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = worker.run.engine_ready()
    real = engine.step

    def jumping(batches, rate):  # type: ignore[no-untyped-def]
        result = real(batches, rate)
        return dataclasses.replace(result, loss=50.0) if worker.run.state.step >= step else result

    monkeypatch.setattr(engine, "step", jumping)


def test_a_loss_spike_undoes_the_job_and_fails_it(make_farm: MakeFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    farm = make_farm(hyperparams={"epochs": 20})
    job = farm.drop(chats(8))
    worker = farm.worker()
    _losses_jump_at(worker, 15, monkeypatch)
    farm.train(worker)
    verdict = farm.queue.find(job.job_id).verdict()
    assert (verdict["state"], verdict["code"], farm.head().step) == ("failed", "loss_spike", 0)


def test_a_loss_spike_can_pause_instead_until_a_person_resumes(
    make_farm: MakeFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make_farm(hyperparams={"epochs": 20}, trainer={"on_spike": "pause"})
    job = farm.drop(chats(8))
    worker = farm.worker()
    _losses_jump_at(worker, 15, monkeypatch)
    farm.train(worker)
    assert (farm.status()["status"], worker.run.state.step) == ("paused", 25)
    monkeypatch.undo()
    farm.order("run")
    farm.train(worker)
    assert farm.lane("done") == [job.job_id]


def test_a_finished_job_found_active_is_moved_and_not_trained_again(make_farm: MakeFarm) -> None:
    farm = make_farm()
    job = farm.drop(chats(8))
    farm.train()
    farm.queue.move(farm.queue.find(job.job_id), "active")
    farm.train()
    assert (farm.lane("done"), farm.head().step) == ([job.job_id], 4)


def test_a_half_trained_job_that_left_active_is_undone_before_the_next_one(make_farm: MakeFarm) -> None:
    farm = make_farm()
    gone = farm.drop(chats(12))
    tick_until_step(farm.worker(), 4)
    farm.queue.move(farm.queue.find(gone.job_id), "failed")  # as the daemon does with a job that crashes
    farm.drop(chats(6, first=30))
    farm.train()
    assert gone.job_id not in {job for job, _, _ in farm.passes()}


@pytest.mark.parametrize("victim", ["optimizer.safetensors", "rng.safetensors", "state.json", "model.safetensors"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_its_job_trained_again(make_farm: MakeFarm, victim: str) -> None:
    farm = make_farm()
    farm.drop(chats(8))
    second = farm.drop(chats(6, first=30), "second.jsonl")
    farm.train()
    whole = weights_of(farm.head())
    (farm.head().folder / victim).unlink()
    farm.train()
    assert same(weights_of(farm.head()), whole)
    assert second.job_id in farm.lane("done")


def test_another_base_or_method_in_the_same_run_is_refused_with_both_values(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.train()
    document = json.loads(farm.workspace.config_file.read_text())
    for change, words in (
        ({"locked": {"base_model": "Qwen/Qwen3-0.6B"}}, "'Qwen/Qwen3-0.6B'.*'dropforge-tiny'"),
        ({"model_name": "other"}, "'other'.*'dropforge-tiny'"),
        ({"trainer": {"method": "lora"}}, "'lora'.*'full'"),
        ({"profile": {"name": "emoji_think"}}, "emoji_think"),
        ({"auto_generate": {"enabled": True}}, "auto-generation"),
    ):
        farm.workspace.config_file.write_text(json.dumps(document | change))
        with pytest.raises(ConfigError, match=words):
            farm.worker()


def test_an_adapter_is_not_trained_on_over_a_damaged_base(make_farm: MakeFarm) -> None:
    farm = make_farm(trainer={"method": "lora"})
    farm.drop(chats(8))
    farm.train()
    weights = farm.workspace.run_dir("main") / "checkpoint-0" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the base under the adapter is damaged.*model\.safetensors"):
        farm.worker()


def test_a_disk_that_refuses_the_weights_is_a_storage_error_leaves_no_half_and_costs_no_job(
    make_farm: MakeFarm,
) -> None:
    calm, refused = make_farm("calm"), make_farm("refused")
    for farm in (calm, refused):
        farm.drop(chats(10))
    calm.train()
    worker = refused.worker()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # the kernel's refusal in the middle of a tensor file
    try:
        with pytest.raises(StorageError, match="File too large"):
            refused.train(worker)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(refused.workspace.incomplete_dir.iterdir())
    assert (refused.head().step, len(refused.lane("active"))) == (0, 1)
    refused.train()
    assert same(weights_of(refused.head()), weights_of(calm.head()))


def test_a_held_out_loss_that_is_not_finite_fails_the_job_and_takes_its_training_back(
    make_farm: MakeFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make_farm()
    job = farm.drop(chats(8))
    held_out = farm.workspace.incoming_dir("main") / f"{job.job_id}.jsonl"
    held_out.parent.mkdir(parents=True)
    held_out.write_text("".join(json.dumps(row) + "\n" for row in chats(3, first=100)))
    worker = farm.worker()
    monkeypatch.setattr("trainer.job_training.mean_loss", lambda *_known: float("nan"))
    farm.train(worker)
    verdict = farm.queue.find(job.job_id).verdict()
    assert (verdict["state"], verdict["code"]) == ("failed", "non_finite_loss")
    assert "held-out loss nan after epoch 1" in verdict["message"]
    assert (farm.head().step, worker.run.state.step) == (0, 0)


def test_a_file_that_no_longer_gives_the_rows_of_its_verdict_fails_with_the_way_back_to_the_gates(
    make_farm: MakeFarm,
) -> None:
    farm = make_farm()
    counted, measured = farm.drop(chats(6)), farm.drop(chats(4, first=40))
    counted.write_verdict(counted.verdict() | {"rows_train": 5})
    worker = farm.worker()
    worker.tick()
    verdict = farm.queue.find(counted.job_id).verdict()
    assert (verdict["state"], verdict["fix"].partition(":")[0]) == ("failed", f"dropforge retry {counted.job_id}")
    config = json.loads(farm.workspace.config_file.read_text())
    config["hyperparams"]["max_length"] = 8
    farm.workspace.config_file.write_text(json.dumps(config))
    farm.train(worker)
    verdict = farm.queue.find(measured.job_id).verdict()
    assert (verdict["state"], "max_length, or set validation.too_long" in verdict["fix"]) == ("failed", True)
    assert ", then dropforge retry JOB_ID" in verdict["fix"]
