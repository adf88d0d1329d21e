"""The trainer in one process: jobs end in committed checkpoints, resumed bit for bit."""

import json
import shutil
from collections.abc import Callable

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.atomic import read_json
from core.checkpoints import REPLAYED_EPOCH
from core.commands.model_checks import precision
from core.paths import schema_file
from scripts.reliability.training_farm import TrainingFarm, chat, chats, same, tick_until_step, weights_of
from trainer import run as run_module
from trainer.opening import open_job
from trainer.packing import pack

MakeFarm = Callable[..., TrainingFarm]


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


def test_a_job_begins_with_its_own_step_and_no_time_left_of_the_job_before(make_farm: MakeFarm) -> None:
    farm = make_farm()
    job = farm.drop(chats(10))
    worker = farm.worker()
    worker.view.show(current_step=327, total_steps=327, eta_s=0.0)
    worker._begin(farm.queue.move(job, "active"), farm.settings)
    said = farm.status()
    assert (said["current_step"], said["total_steps"], said["eta_s"]) == (0, 5, None)


def test_training_one_file_after_another_in_one_process_or_in_two_gives_the_same_bits(make_farm: MakeFarm) -> None:
    warm, cold = make_farm("warm"), make_farm("cold")
    for farm in (warm, cold):
        farm.drop(chats(10))
        if farm is cold:
            farm.train()
        farm.drop(chats(9, first=50), "more.jsonl")
        farm.train()
    assert same(weights_of(warm.head()), weights_of(cold.head()))


@pytest.mark.parametrize(("method", "fp_precision"), [("full", "fp32"), ("lora", "fp32"), ("full", "bf16")])
def test_a_trainer_dropped_between_two_steps_is_made_good_bit_for_bit_by_the_next(
    make_farm: MakeFarm, method: str, fp_precision: str
) -> None:
    config = {"trainer": {"method": method}, "hyperparams": {"fp_precision": fp_precision}}
    straight, broken = (make_farm(name, **config) for name in ("straight", "broken"))
    for farm in (straight, broken):
        farm.drop(chats(10))
        farm.drop(chats(7, first=20), "more.jsonl")
    straight.train()
    for step in (1, 4, 5, 8):
        tick_until_step(broken.worker(), step)  # forgotten without a word, as by kill -9
    broken.train()
    assert same(weights_of(straight.head()), weights_of(broken.head()))
    assert sorted(p[1:] for p in straight.passes()) == sorted(p[1:] for p in broken.passes())
    assert len(broken.passes()) == 34


def test_auto_precision_stays_what_it_was_when_the_run_began_whatever_the_machine_says_later(
    make_farm: MakeFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = make_farm("straight"), make_farm("broken")
    for farm in (straight, broken):
        farm.drop(chats(10))
    monkeypatch.setattr(run_module, "faster_on_cpu", lambda _width: "bf16")
    straight.train()
    tick_until_step(broken.worker(), 4)
    monkeypatch.setattr(run_module, "faster_on_cpu", lambda _width: "fp32")
    worker = broken.train()
    assert worker.run.engine_ready().dials.compute_dtype is torch.bfloat16
    assert "products in bf16" in precision(broken.workspace, broken.settings).message
    assert same(weights_of(straight.head()), weights_of(broken.head()))


def test_random_numbers_go_on_where_the_commit_left_them(make_farm: MakeFarm) -> None:
    straight, broken = make_farm("straight"), make_farm("broken")
    for farm in (straight, broken):
        config = farm.workspace.root / "models" / "dropforge-tiny" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.2}))
        farm.drop(chats(10))
    straight.train()
    tick_until_step(broken.worker(), 4)
    broken.train()
    assert same(weights_of(straight.head()), weights_of(broken.head()))


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


def test_a_job_without_a_token_cache_gets_one_with_the_same_rows(make_farm: MakeFarm) -> None:
    cached, bare = make_farm("cached"), make_farm("bare")
    cached.drop(chats(8))
    shutil.rmtree(bare.drop(chats(8)).tokens_folder)
    cached.train()
    bare.train()
    assert same(weights_of(cached.head()), weights_of(bare.head()))


def test_replay_mixes_earlier_rows_in_and_every_jobs_own_passes_still_add_up(make_farm: MakeFarm) -> None:
    straight, broken = (make_farm(name, trainer={"replay_ratio": 0.5}) for name in ("straight", "broken"))
    for farm in (straight, broken):
        farm.drop(chats(10))
        farm.drop(chats(8, first=20), "more.jsonl")
    straight.train()
    for step in (6, 8):
        tick_until_step(broken.worker(), step)
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


def test_the_held_out_loss_of_each_epoch_is_logged_and_changes_nothing_that_is_trained(make_farm: MakeFarm) -> None:
    watched, plain = make_farm("watched"), make_farm("plain")
    for farm in (watched, plain):  # 10 rows, 4 a step, twice: the epochs end within steps 3 and 5
        job = farm.drop(chats(10))
        held_out = farm.workspace.incoming_dir("main") / f"{job.job_id}.jsonl"
        held_out.parent.mkdir(parents=True)
        if farm is watched:
            held_out.write_text("".join(json.dumps(row) + "\n" for row in chats(5, first=100)))
        farm.train()
    lines = [json.loads(line) for line in watched.workspace.metrics_file("main").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 5]
    assert same(weights_of(watched.head()), weights_of(plain.head()))


def test_the_collated_batch_trains_answers_and_their_end_tokens_and_nothing_else(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.drop(chats(4))
    worker = farm.worker()
    worker.tick()
    batches = pack(open_job(worker.run, farm.queue.jobs("active")[0], farm.settings).next_rows()[0], 4096)
    targets = [farm.encoder.decode(batch.targets_N.tolist(), False) for batch in batches]
    answers = [row["messages"][1]["content"] for row in chats(4)]
    assert sorted("".join(targets).split("<|im_end|>")) == sorted([*answers, ""])


def test_the_first_batch_shows_tokens_and_what_of_them_is_trained(make_farm: MakeFarm) -> None:
    farm = make_farm()
    farm.drop(chats(8))
    farm.train()
    shown = read_json(farm.workspace.status_file("first_batch.json"))
    first = shown["rows"][0]
    trained = "".join(t for t, on in zip(first["tokens"], first["mask"], strict=True) if on)
    assert trained.startswith(f"it is {first['line'] - 1}")
    assert "what is" in "".join(first["tokens"])


def test_the_status_and_step_log_tell_each_step(make_farm: MakeFarm) -> None:
    farm = make_farm()
    job = farm.drop(chats(8))
    farm.train()
    jsonschema.validate(farm.status(), read_json(schema_file("training_status")))
    lines = [json.loads(line) for line in farm.workspace.metrics_file("main").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {line["job_id"] for line in lines} == {job.job_id}
    assert lines[-1]["loss"] < lines[0]["loss"]
