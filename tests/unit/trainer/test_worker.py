"""The trainer in one process: jobs end in committed checkpoints, orders and poison take back exactly what they must."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.atomic import read_json
from core.checkpoints import REPLAYED_EPOCH
from core.errors import ConfigError
from core.paths import schema_file
from scripts.reliability.training_farm import TrainingFarm, chat, chats, same, weights_in, weights_of
from trainer.config import dials
from trainer.worker import Did, Worker

MakeFarm = Callable[..., TrainingFarm]


@pytest.fixture
def make_farm(tmp_path: Path) -> MakeFarm:
    torch.set_num_threads(1)
    return lambda name="root", **config: TrainingFarm(tmp_path / name, **config)


def _tick_until_step(worker: Worker, step: int) -> None:
    while worker.run.state.step < step:
        assert worker.tick() is Did.WORK
    worker.run.settle()  # a thread of a worker that is dropped must not write into its successor's root


def test_the_base_becomes_checkpoint_0_with_a_manifest_of_the_contract(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.train()
    (base,) = farm.catalogue.committed()
    jsonschema.validate(base.manifest, read_json(schema_file("manifest")))
    assert (base.step, base.parent, base.manifest["jobs"]) == (0, None, [])
    assert farm.catalogue.verify(base, training=True) == []


def test_a_job_ends_done_with_every_row_trained_epochs_times_and_its_verdict_filled(make_farm: MakeFarm) -> None:
    farm = make_farm()
    job = farm.drop(chats(10))
    farm.train()
    verdict = farm.queue.find(job.job_id).verdict()
    jsonschema.validate(verdict, read_json(schema_file("verdict")))
    assert farm.lane("done") == [job.job_id]
    assert (verdict["state"], verdict["checkpoint"]) == ("done", farm.head().id)
    assert verdict["training"]["rows_trained"] == 20
    assert (verdict["training"]["first_step"], verdict["training"]["last_step"]) == (1, 5)
    assert farm.head().ends_job
    assert sorted(farm.passes()) == sorted((job.job_id, row, epoch) for row in range(10) for epoch in range(2))


def test_the_second_file_really_trains_with_moments_and_step_count_that_go_on(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.drop(chats(10))
    worker = farm.train()
    first, step_before = weights_of(farm.head()), farm.head().step
    second = farm.drop(chats(9, first=50), "more.jsonl")
    farm.train(worker)
    after = weights_of(farm.head())
    assert farm.head().step == step_before + 5
    assert all(not torch.equal(after[k], first[k]) for k in first if k.startswith("model."))
    counts = {k: float(t) for k, t in after.items() if k.endswith(".step")}
    assert set(counts.values()) == {float(farm.head().step)}
    assert farm.queue.find(second.job_id).verdict()["training"]["first_step"] == step_before + 1
    assert worker.run.loads == 1  # nothing was read from the disk again


def test_training_one_file_after_another_in_one_process_or_in_two_gives_the_same_bits(make_farm: MakeFarm) -> None:
    warm, cold = make_farm("warm"), make_farm("cold")
    for farm in (warm, cold):
        farm.drop(chats(10))
        if farm is cold:
            farm.train()
        farm.drop(chats(9, first=50), "more.jsonl")
        farm.train()
    assert same(weights_of(warm.head()), weights_of(cold.head()))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_trainer_dropped_between_two_steps_is_made_good_bit_for_bit_by_the_next(
    make_farm: MakeFarm, method: str
) -> None:
    straight, broken = (make_farm(name, trainer={"method": method}) for name in ("straight", "broken"))
    for farm in (straight, broken):
        farm.drop(chats(10))
        farm.drop(chats(7, first=20), "more.jsonl")
    straight.train()
    for step in (1, 4, 5, 8):
        _tick_until_step(broken.worker(), step)  # forgotten without a word, as by kill -9
    broken.train()
    assert same(weights_of(straight.head()), weights_of(broken.head()))
    assert sorted(p[1:] for p in straight.passes()) == sorted(p[1:] for p in broken.passes())
    assert len(broken.passes()) == 34


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads what transformers renamed
def test_a_lora_checkpoint_holds_only_the_adapter_and_loads_in_transformers(make_farm: MakeFarm) -> None:
    farm = make_farm(trainer={"method": "lora"})
    farm.drop(chats(10))
    worker = farm.train()
    head = farm.head()
    assert not (head.folder / "model.safetensors").exists()
    served = AutoModelForCausalLM.from_pretrained(head.folder)
    ids = torch.arange(5, 25)[None]
    ours = worker.run.engine_ready().model.eval()
    ours.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(served(ids).logits, ours(ids).logits, atol=1e-5, rtol=1e-4)


def test_skip_undoes_the_active_job_and_the_next_one_trains_as_if_it_had_never_been(make_farm: MakeFarm) -> None:
    clean, skipping = make_farm("clean"), make_farm("skipping")
    clean.drop(chats(8))
    clean.drop(chats(6, first=30), "third.jsonl")
    clean.train()
    skipping.drop(chats(8))
    victim = skipping.drop(chats(12, first=90), "victim.jsonl")
    skipping.drop(chats(6, first=30), "third.jsonl")
    worker = skipping.worker()
    _tick_until_step(worker, 8)  # past a commit in the middle of the victim
    assert skipping.head().step == 7
    seq = skipping.order("skip", job_id=victim.job_id)
    skipping.train(worker)
    assert skipping.queue.find(victim.job_id).verdict()["code"] == "skipped"
    assert skipping.status()["ack"]["seq"] == seq
    assert same(weights_of(clean.head()), weights_of(skipping.head()))
    assert victim.job_id not in {job for job, _, _ in skipping.passes()}


def test_rewind_restores_the_weights_of_the_checkpoint_and_queues_later_jobs_again(make_farm: MakeFarm) -> None:
    farm = make_farm()
    first = farm.drop(chats(8))
    worker = farm.train()
    wanted, target = weights_in(worker.run), farm.head()
    second = farm.drop(chats(6, first=30), "second.jsonl")
    third = farm.drop(chats(9, first=60), "third.jsonl")
    _tick_until_step(worker, 9)
    farm.order("pause")
    worker.tick()
    farm.order("rewind", id=target.id, paused=True)
    worker.tick()
    assert farm.head().id == target.id
    assert same(weights_in(worker.run), wanted)
    assert (worker.run.state.step, farm.lane("done")) == (4, [first.job_id])
    assert sorted(farm.lane("normal")) == sorted([second.job_id, third.job_id])
    assert farm.queue.find(second.job_id).verdict()["training"] is None
    farm.order("run")
    farm.train(worker)
    assert sorted(farm.lane("done")) == sorted([first.job_id, second.job_id, third.job_id])


def test_rewind_with_hold_keeps_the_jobs_since_for_a_person(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.drop(chats(8))
    worker = farm.train()
    wanted, target = weights_in(worker.run), farm.head()
    worse = farm.drop(chats(6, first=30), "worse.jsonl")
    farm.train(worker)
    farm.order("rewind", id=target.id, hold=True)
    farm.train(worker)
    assert (farm.head().id, farm.lane("held"), farm.lane("normal")) == (target.id, [worse.job_id], [])
    verdict = farm.queue.find(worse.job_id).verdict()
    assert (verdict["state"], verdict["code"], verdict["training"]) == ("held", "regressed", None)
    assert same(weights_in(worker.run), wanted)


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
    _tick_until_step(worker, 6)
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


def test_a_job_without_a_token_cache_gets_one_with_the_same_rows(make_farm: MakeFarm) -> None:
    cached, bare = make_farm("cached"), make_farm("bare")
    cached.drop(chats(8))
    shutil.rmtree(bare.drop(chats(8)).tokens_folder)
    cached.train()
    bare.train()
    assert same(weights_of(cached.head()), weights_of(bare.head()))


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
    _tick_until_step(worker, 2)
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


def test_replay_mixes_earlier_rows_in_and_every_jobs_own_passes_still_add_up(make_farm: MakeFarm) -> None:
    straight, broken = (make_farm(name, trainer={"replay_ratio": 0.5}) for name in ("straight", "broken"))
    for farm in (straight, broken):
        farm.drop(chats(10))
        farm.drop(chats(8, first=20), "more.jsonl")
    straight.train()
    for step in (6, 8):
        _tick_until_step(broken.worker(), step)
    broken.train()
    first, second = straight.lane("done")
    passes = straight.passes()
    own = [p for p in passes if p[2] != REPLAYED_EPOCH]
    replayed = [p for p in passes if p[2] == REPLAYED_EPOCH]
    assert sorted(own) == sorted([(first, r, e) for r in range(10) for e in range(2)] + _all(second, 8))
    assert {job for job, _, _ in replayed} == {first}
    assert 4 <= len(replayed) <= 8  # half of eight rows, twice; what would follow the last own row is left out
    assert same(weights_of(straight.head()), weights_of(broken.head()))


def _all(job_id: str, rows: int) -> list[tuple[str, int, int]]:
    return [(job_id, row, epoch) for row in range(rows) for epoch in range(2)]


def test_a_job_ends_early_when_its_held_out_loss_no_longer_falls_and_counts_whole_epochs(make_farm: MakeFarm) -> None:
    farm = make_farm(hyperparams={"epochs": 40}, trainer={"patience": 2})
    job = farm.drop(chats(10))
    held_out = farm.workspace.incoming_dir("main") / f"{job.job_id}.jsonl"
    held_out.parent.mkdir(parents=True)
    held_out.write_text("".join(json.dumps(chat(f"q {n}", "zzz qqq xxx" * n)) + "\n" for n in range(1, 6)))
    farm.train()
    (entry,) = farm.head().manifest["jobs"]
    assert entry["epochs"] < 40
    assert farm.head().ends_job
    assert sorted(farm.passes()) == sorted(
        (job.job_id, row, epoch) for row in range(10) for epoch in range(entry["epochs"])
    )
    lines = [json.loads(line) for line in farm.workspace.metrics_file("main").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == entry["epochs"]
    assert min(losses) == losses[-3]  # two epochs without a gain


def test_the_first_batch_shows_tokens_and_what_of_them_is_trained(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.drop(chats(8))
    farm.train()
    shown = read_json(farm.workspace.status_file("first_batch.json"))
    first = shown["rows"][0]
    trained = "".join(t for t, on in zip(first["tokens"], first["mask"], strict=True) if on)
    assert trained.startswith(f"it is {first['line'] - 1}")
    assert "what is" in "".join(first["tokens"])


def test_pause_stops_after_the_step_and_run_goes_on_to_the_same_weights(make_farm: MakeFarm) -> None:
    straight, paused = make_farm("straight"), make_farm("paused")
    for farm in (straight, paused):
        farm.drop(chats(10))
    straight.train()
    worker = paused.worker()
    _tick_until_step(worker, 2)
    paused.order("pause", release_gpu=True)
    worker.tick()
    assert [worker.tick() for _ in range(3)] == [Did.NOTHING] * 3
    assert (worker.run.state.step, paused.status()["status"]) == (2, "paused")
    paused.order("run")
    paused.train(worker)
    assert same(weights_of(straight.head()), weights_of(paused.head()))


def test_stop_commits_in_the_middle_of_a_job_and_leaves_it_active(make_farm: MakeFarm) -> None:
    farm = make_farm(trainer={"checkpoint_every_steps": 100})
    job = farm.drop(chats(10))
    worker = farm.worker()
    _tick_until_step(worker, 2)
    farm.order("stop")
    assert worker.tick() is Did.STOP
    assert (farm.head().step, farm.lane("active")) == (2, [job.job_id])
    assert farm.status()["ack"]["checkpoint"] == farm.head().id
    farm.order("run")
    farm.train()
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
    _tick_until_step(farm.worker(), 4)
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


def test_the_status_and_step_log_tell_each_step(make_farm: MakeFarm) -> None:
    farm = make_farm()
    job = farm.drop(chats(8))
    farm.train()
    jsonschema.validate(farm.status(), read_json(schema_file("training_status")))
    lines = [json.loads(line) for line in farm.workspace.metrics_file("main").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {line["job_id"] for line in lines} == {job.job_id}
    assert lines[-1]["loss"] < lines[0]["loss"]
