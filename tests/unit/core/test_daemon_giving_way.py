"""What people ask of the server goes before a judgement that is under way."""

import signal
from collections.abc import Iterator

import pytest

from core.paths import Workspace
from daemon_rig import commit, ended
from judging_rig import JOB, Rig


@pytest.fixture
def rig(workspace: Workspace, clock: object) -> Iterator[Rig]:
    made = Rig(workspace, clock)
    yield made
    made.context.wakeup.close()


def stopped(rig: Rig) -> None:
    """The judge obeys the SIGTERM it was sent."""
    judge = rig.spawn.last("judge")
    assert judge.signals == [signal.SIGTERM], "asked to end, once"
    judge.code = -signal.SIGTERM
    rig.tick()


def test_a_promotion_by_hand_does_not_wait_for_a_running_judgement(rig: Rig) -> None:
    base, older = commit(rig.workspace, 0), commit(rig.workspace, 10, [ended(JOB.format(1))])
    newest = commit(rig.workspace, 20, [ended(JOB.format(2))])
    rig.serve(base)
    rig.tick()
    assert rig.running() == ("--candidate", newest.id, "--serving", base.id, "--superseded", older.id)
    errand = rig.judging.ask_publish(older.id)
    rig.tick(times=3)
    assert errand.ack is None
    stopped(rig)
    assert rig.running() == (older.id,)
    rig.publish_says(older, True)
    rig.serve(older, base)
    rig.finish()
    assert errand.ack == {"step": None, "checkpoint": older.id, "error": None}
    rig.finish()  # the refresh of the leaderboard
    rig.tick(times=3)
    assert rig.running() == ("--candidate", newest.id, "--serving", older.id), "judged against what serves now"


def test_an_evaluation_by_hand_goes_on_after_the_rollback_that_stopped_it(rig: Rig) -> None:
    base, served = commit(rig.workspace, 0), commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.serve(served, base)
    asked = rig.judging.ask_evaluation(base.id, "easy")
    rig.tick()
    evaluation = rig.running()
    rollback = rig.judging.ask_rollback()
    rig.tick()
    stopped(rig)
    assert rig.running() == ("--rollback",)
    rig.finish()
    assert (rollback.ack is None, asked.ack) == (False, None)
    assert rig.running() == evaluation
    rig.finish()
    assert asked.ack == {"step": None, "checkpoint": base.id, "error": None}


def test_a_judgement_that_ends_in_the_moment_it_should_give_way_counts(rig: Rig) -> None:
    base, better = commit(rig.workspace, 0), commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.serve(base)
    rig.tick()
    rig.judging.ask_publish(better.id)
    rig.tick()
    rig.judge_says(better, "keep")
    rig.spawn.last("judge").code = 0
    rig.tick()
    assert rig.running() == (better.id,)
    assert "judged" in [event["kind"] for event in rig.events()]


def test_a_promotion_for_a_server_that_was_never_heard_stops_no_judgement(rig: Rig) -> None:
    commit(rig.workspace, 0)
    better = commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.server = None
    rig.tick(seconds=6, times=4)
    assert rig.spawn.names() == ["judge"]
    rig.judging.ask_publish(better.id)
    rig.tick(times=3)
    assert rig.spawn.last("judge").signals == []


def test_the_refresh_of_the_leaderboard_is_not_stopped(rig: Rig) -> None:
    base, better = commit(rig.workspace, 0), commit(rig.workspace, 10, [ended(JOB.format(1))])
    rig.serve(base)
    rig.tick()
    rig.judge_says(better, "promote")
    rig.finish()
    rig.publish_says(better, True)
    rig.serve(better, base)
    rig.finish()
    assert rig.running() == ("--refresh", "--serving", better.id)
    rig.judging.ask_rollback()
    rig.tick(times=2)
    assert rig.spawn.last("judge").signals == []
