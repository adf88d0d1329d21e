"""What is judged, what is published, in which order, and what a restart or a dead server changes."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any  # the server's answer is JSON

import pytest

from core.daemon.deployment import DeploymentPoller, DeploymentView
from core.paths import Workspace
from daemon_rig import commit, ended, make_context
from judging_rig import JOB, Rig


@pytest.fixture
def rig(workspace: Workspace, clock: object) -> Iterator[Rig]:
    made = Rig(workspace, clock)
    yield made
    made.context.wakeup.close()


def test_an_empty_server_gets_the_base_first(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.tick()
    assert rig.running() == (base.id,)
    assert rig.spawn.names() == ["publisher"]


def test_a_job_end_is_judged_against_what_serves_and_published_when_better(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    rig.tick()
    assert rig.running() is None
    better = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    assert rig.running() == ("--candidate", better.id, "--serving", base.id)
    rig.judge_says(better, "promote")
    rig.finish()
    assert rig.running() == (better.id,)
    rig.publish_says(better, True)
    rig.serve(better, base)
    rig.finish()
    assert rig.running() == ("--refresh", "--serving", better.id)
    rig.finish()
    assert rig.running() is None
    assert rig.judging.at_rest(rig.clock())


def test_a_candidate_that_is_not_better_is_kept_back(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    worse = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    rig.judge_says(worse, "keep")
    rig.finish()
    assert rig.running() is None
    assert rig.judging.at_rest(rig.clock())


def test_a_commit_inside_a_job_is_not_judged(rig: Rig) -> None:
    rig.serve(commit(rig.workspace, 0))
    commit(rig.workspace, 10, [ended(JOB.format(1)) | {"rows_trained": 5}])
    rig.tick()
    assert rig.running() is None


def test_of_several_that_wait_only_the_newest_is_judged(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    first = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    waiting = [commit(rig.workspace, step, [ended(JOB.format(step // 10))]) for step in (20, 30, 40)]
    rig.tick()
    assert rig.running() == ("--candidate", first.id, "--serving", base.id)
    rig.judge_says(first, "keep")
    rig.finish()
    expected = ("--superseded", waiting[0].id, "--superseded", waiting[1].id)
    assert rig.running() == ("--candidate", waiting[2].id, "--serving", base.id, *expected)


def test_publishing_ends_before_the_next_judgement(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    first = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    second = commit(rig.workspace, 20, [ended(JOB.format(2))])
    rig.judge_says(first, "promote")
    rig.finish()
    assert rig.running() == (first.id,)
    rig.publish_says(first, True)
    rig.finish()
    assert rig.running() is None, "the server has not been heard since"
    rig.serve(first, base)
    rig.tick()
    assert rig.running() == ("--refresh", "--serving", first.id)
    rig.finish()
    assert rig.running() == ("--candidate", second.id, "--serving", first.id)


def test_what_the_servers_gate_refused_is_not_sent_again(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    bad = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    rig.judge_says(bad, "promote")
    rig.finish()
    rig.publish_says(bad, False)
    rig.finish(code=5)
    rig.finish()
    rig.tick(60.0, times=20)
    assert [argv for p in rig.spawn.processes if (argv := p.spec.argv[5:]) == (bad.id,)] == [(bad.id,)]
    rig.restart()
    rig.tick(times=5)
    assert rig.running() is None


def test_a_network_error_is_tried_again_when_the_server_is_back(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    better = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    rig.judge_says(better, "promote")
    rig.finish()
    for _ in range(3):
        rig.finish(code=1)
        rig.tick(60.0)
    assert rig.running() is None
    assert rig.judging.at_rest(rig.clock()), "put off, so the daemon may rest"
    saved, rig.server = rig.server, None
    rig.tick()
    rig.server = saved
    rig.tick(times=2)
    assert rig.running() == (better.id,)


def test_a_rollback_by_hand_is_not_undone_by_the_daemon(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    better = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.judge_says(better, "promote")
    rig.publish_says(better, True)
    rig.serve(better, base)
    rig.tick()
    rolled = rig.judging.ask_rollback()
    rig.tick()
    assert rig.running() == ("--rollback",)
    rig.serve(base, better)
    rig.finish()
    rig.finish()
    assert rolled.ack == {"step": None, "checkpoint": None, "error": None}
    rig.tick(times=5)
    rig.restart()
    rig.tick(times=5)
    assert rig.running() is None


def test_what_is_asked_before_the_server_answered_waits_for_its_first_answer(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    better = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.judge_says(better, "promote")
    rig.publish_says(better, True)
    rig.server = None
    rolled, promoted = rig.judging.ask_rollback(), rig.judging.ask_publish(base.id)
    measured = rig.judging.ask_evaluation(base.id, None)
    rig.tick(times=3)
    assert rig.running() == ("--candidate", base.id), "what needs no server is not held up"
    rig.finish()
    assert measured.ack is not None
    rig.tick(1.0, times=20)
    assert (rolled.ack, promoted.ack, rig.running()) == (None, None, None)
    assert rig.spawn.names().count("publisher") == 0
    rig.serve(better, base)
    rig.tick()
    assert rig.running() == ("--rollback",)
    rig.finish()
    assert rig.running() == (base.id,)


def test_what_still_waits_for_the_server_when_the_daemon_stops_is_answered_with_that(rig: Rig) -> None:
    commit(rig.workspace, 0)
    rig.server = None
    rolled = rig.judging.ask_rollback()
    rig.tick(times=3)
    assert not rig.judging.at_rest(rig.clock())
    rig.tick(1.0, times=20)
    assert rig.judging.at_rest(rig.clock()), "a server that never comes is waited for during the grace only"
    rig.judging.stop(rig.clock())
    assert rolled.ack is not None
    assert "ask again" in rolled.ack["error"]


def test_a_judge_that_fails_three_times_is_given_up_and_named(rig: Rig) -> None:
    rig.serve(commit(rig.workspace, 0))
    commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    for _ in range(3):
        rig.finish(code=1)
        rig.tick(60.0)
    assert rig.running() is None
    assert rig.judging.at_rest(rig.clock())
    events = rig.workspace.status_file("events.jsonl").read_text()
    assert '"kind": "judge_failed"' in events
    rig.judging.config_changed()
    rig.tick()
    assert rig.running() is not None, "another configuration: it is tried again"


def test_without_a_server_judging_waits_for_the_grace_only(rig: Rig) -> None:
    commit(rig.workspace, 0)
    candidate = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.server = None
    rig.tick(1.0, times=5)
    assert rig.running() is None
    assert not rig.judging.at_rest(rig.clock())
    rig.tick(1.0, times=10)
    assert rig.running() == ("--candidate", candidate.id)
    rig.judge_says(candidate, "no_baseline")
    rig.finish()
    assert rig.judging.at_rest(rig.clock())
    rig.server = {"serving": None, "previous": None, "checkpoints": []}
    rig.tick()
    assert rig.running() == (candidate.id,)


def test_a_server_that_is_down_keeps_its_last_known_checkpoint_as_the_baseline(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    rig.tick()
    rig.server = None
    rig.restart()
    candidate = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    assert rig.running() == ("--candidate", candidate.id, "--serving", base.id)


def test_a_promotion_by_hand_is_published_whatever_the_judge_said(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    worse = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.judge_says(worse, "keep")
    rig.tick()
    asked = rig.judging.ask_publish(worse.id)
    rig.tick()
    assert rig.running() == (worse.id,)
    rig.finish(code=5)
    assert asked.ack is not None
    assert "5" in asked.ack["error"]


def test_effect_and_served_reach_the_verdicts(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    first, second = rig.done_job(1), rig.done_job(2)
    one = commit(rig.workspace, 10, [ended(first.job_id)])
    rig.tick()
    effect = {"incoming": {"before": 2.0, "after": 1.0, "delta": -1.0, "ci95": [-1.2, -0.8]}}
    rig.judge_says(one, "promote", effect=effect)
    rig.finish()
    assert first.verdict()["effect"] == effect
    assert first.verdict()["served"] is False
    rig.judging.judged.append(one.id)  # as after an evaluation by hand, against what serves by then
    rig.judge_says(one, "keep", effect={"incoming": {"before": 0.5, "after": 1.0, "delta": 0.5, "ci95": [0.4, 0.6]}})
    rig.tick()
    assert first.verdict()["effect"] == effect
    two = commit(rig.workspace, 20, [ended(second.job_id)])
    rig.serve(two)
    rig.tick(3.0)
    assert (first.verdict()["served"], second.verdict()["served"]) == (True, True)
    rig.serve(one)
    rig.tick(3.0)
    assert (first.verdict()["served"], second.verdict()["served"]) == (True, False)


def test_an_effect_that_a_crash_lost_is_merged_at_the_next_start(rig: Rig) -> None:
    rig.serve(commit(rig.workspace, 0))
    job = rig.done_job(1)
    rig.judge_says(commit(rig.workspace, 10, [ended(job.job_id)]), "keep", effect={"incoming": {"delta": 0.0}})
    rig.restart()
    rig.tick()
    assert job.verdict()["effect"] == {"incoming": {"delta": 0.0}}


@pytest.mark.parametrize(("policy", "regressed", "asked"), [("rewind", True, True), ("continue", True, False)])
def test_a_clearly_worse_candidate_is_taken_back_when_the_operator_wants_that(
    workspace: Workspace, clock: object, policy: str, regressed: bool, asked: bool
) -> None:
    rig = Rig(workspace, clock, trainer={"on_regress": policy})
    base = commit(workspace, 0)
    rig.serve(base)
    worse = commit(workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    rig.judge_says(worse, "keep", regressed=regressed)
    rig.finish()
    rig.orders.tick()
    path = workspace.status_file("orders.json")
    order = json.loads(path.read_text()) if path.exists() else {}
    wanted = {"command": "rewind", "id": base.id, "hold": True}
    assert (wanted.items() <= order.items()) == asked
    rig.tick(times=3)
    assert rig.orders.idle != asked, "asked once, and only once"
    rig.context.wakeup.close()


def test_a_candidate_that_is_merely_not_better_is_never_taken_back(workspace: Workspace, clock: object) -> None:
    rig = Rig(workspace, clock, trainer={"on_regress": "rewind"})
    rig.serve(commit(workspace, 0))
    same = commit(workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    rig.judge_says(same, "keep", regressed=False)
    rig.finish()
    assert rig.orders.idle
    rig.context.wakeup.close()


def test_what_waits_is_named_for_retention(rig: Rig) -> None:
    base = commit(rig.workspace, 0)
    rig.serve(base)
    rig.tick()
    first = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.tick()
    second = commit(rig.workspace, 20, [ended(JOB.format(2))])
    rig.tick()
    assert rig.judging.wanted() == {first.id, second.id}


def test_a_server_that_does_not_run_is_said_to_refuse_the_connection_and_nothing_more() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        poller = DeploymentPoller(f"http://127.0.0.1:{unused.getsockname()[1]}", lambda: None)
        assert poller._once() == (None, "connection refused")


def test_a_server_that_is_still_loading_is_not_taken_for_an_empty_one(
    workspace: Workspace, wait_until: Callable[..., Any]
) -> None:
    """It would be sent the base, and what it served before would never come back by itself."""
    said: dict[str, Any] = {"serving": None, "previous": None, "checkpoints": [], "starting": True}
    context = make_context(workspace)
    poller = DeploymentPoller("http://x", lambda: None, ask=lambda url: dict(said))
    view = DeploymentView(context, poller)
    poller.start()
    try:
        wait_until(lambda: view.tick() or view.asked, what="the first poll")
        assert (view.ok, view.reached_empty) == (False, False)
        said["starting"] = False
        poller.poke()
        wait_until(lambda: view.tick() or view.ok, what="the next poll")
        assert view.reached_empty
    finally:
        poller.stop()
        context.wakeup.close()
