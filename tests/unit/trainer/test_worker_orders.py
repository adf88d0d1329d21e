"""Orders: pause, stop, skip and rewind take effect after the step, and take back exactly what they must."""

from collections.abc import Callable

from scripts.reliability.training_farm import TrainingFarm, chats, same, tick_until_step, weights_in, weights_of
from trainer.worker import Did

MakeFarm = Callable[..., TrainingFarm]


def test_skip_undoes_the_active_job_and_the_next_one_trains_as_if_it_had_never_been(make_farm: MakeFarm) -> None:
    clean, skipping = make_farm("clean"), make_farm("skipping")
    clean.drop(chats(8))
    clean.drop(chats(6, first=30), "third.jsonl")
    clean.train()
    skipping.drop(chats(8))
    victim = skipping.drop(chats(12, first=90), "victim.jsonl")
    skipping.drop(chats(6, first=30), "third.jsonl")
    worker = skipping.worker()
    tick_until_step(worker, 8)  # past a commit in the middle of the victim
    assert skipping.head().step == 7
    seq = skipping.order("skip", job_id=victim.job_id, paused=True)
    assert worker.tick() is Did.NOTHING
    assert skipping.head().step == 4  # undone at once, not when the next job needs the weights
    assert skipping.status()["ack"]["seq"] == seq
    skipping.order("run")
    skipping.train(worker)
    assert skipping.queue.find(victim.job_id).verdict()["code"] == "skipped"
    assert same(weights_of(clean.head()), weights_of(skipping.head()))
    assert victim.job_id not in {job for job, _, _ in skipping.passes()}


def test_rewind_restores_the_weights_of_the_checkpoint_and_queues_later_jobs_again(make_farm: MakeFarm) -> None:
    farm = make_farm()
    first = farm.drop(chats(8))
    worker = farm.train()
    wanted, target = weights_in(worker.run), farm.head()
    second = farm.drop(chats(6, first=30), "second.jsonl")
    third = farm.drop(chats(9, first=60), "third.jsonl")
    tick_until_step(worker, 9)
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


def test_pause_stops_after_the_step_and_run_goes_on_to_the_same_weights(make_farm: MakeFarm) -> None:
    straight, paused = make_farm("straight"), make_farm("paused")
    for farm in (straight, paused):
        farm.drop(chats(10))
    straight.train()
    worker = paused.worker()
    tick_until_step(worker, 2)
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
    tick_until_step(worker, 2)
    farm.order("stop")
    assert worker.tick() is Did.STOP
    assert (farm.head().step, farm.lane("active")) == (2, [job.job_id])
    assert farm.status()["ack"]["checkpoint"] == farm.head().id
    farm.order("run")
    farm.train()
    assert farm.lane("done") == [job.job_id]
