"""What serves when training was taken back behind it: an older one, the base, or itself once it is made again."""

from collections.abc import Iterator

import pytest

from core.checkpoints import Checkpoint
from core.paths import Workspace
from daemon_rig import commit, ended
from judging_rig import JOB, Rig


@pytest.fixture
def rig(workspace: Workspace, clock: object) -> Iterator[Rig]:
    made = Rig(workspace, clock)
    yield made
    made.context.wakeup.close()


@pytest.fixture
def taken_back(rig: Rig) -> tuple[Rig, Checkpoint, Checkpoint]:
    """Two promoted checkpoints; the newer one serves and has been taken back, its job waits again."""
    base = commit(rig.workspace, 0)
    older = commit(rig.workspace, 10, [ended(JOB.format(1))])
    newer = commit(rig.workspace, 20, [ended(JOB.format(2))])
    for checkpoint in (older, newer):
        rig.judge_says(checkpoint, "promote")
        rig.publish_says(checkpoint, True)
    rig.serve(newer, older)
    rig.tick()
    job = rig.done_job(2)
    rig.context.queue.move(job, "normal")
    rig.view.catalogue.undo_after(older.id)
    rig.tick(times=3)
    assert rig.running() is None, "its job would make it again"
    assert base.id
    return rig, older, newer


def test_what_serves_and_was_taken_back_for_good_gives_way_to_the_newest_that_is_left(
    taken_back: tuple[Rig, Checkpoint, Checkpoint],
) -> None:
    rig, older, newer = taken_back
    rig.context.queue.move(rig.context.queue.waiting()[0], "failed")
    assert not rig.judging.at_rest(rig.clock())
    rig.tick()
    assert rig.running() == (older.id,)
    rig.serve(older, newer)
    rig.finish()
    rig.finish()
    assert rig.events()[-1]["message"] == f"{older.id} is published in place of {newer.id}, which was taken back"
    rig.serve(newer, older)
    rig.tick(times=5)
    assert rig.running() is None, "a rollback by hand is a person's decision"


def test_without_a_promoted_one_left_the_base_serves_again(taken_back: tuple[Rig, Checkpoint, Checkpoint]) -> None:
    rig, older, _newer = taken_back
    rig.publish_says(older, False)
    rig.context.queue.move(rig.context.queue.waiting()[0], "failed")
    rig.tick()
    base = rig.view.base
    assert base is not None and rig.running() == (base.id,)


def test_a_job_that_makes_the_same_weights_again_brings_them_back(
    taken_back: tuple[Rig, Checkpoint, Checkpoint],
) -> None:
    rig, older, newer = taken_back
    rig.context.queue.move(rig.context.queue.waiting()[0], "failed")
    rig.tick()
    rig.serve(older, newer)
    rig.finish()
    rig.finish()
    assert commit(rig.workspace, 20, [ended(JOB.format(2))]).id == newer.id, "the job was retried"
    rig.tick()
    assert rig.running() == (newer.id,)
    rig.serve(newer, older)
    rig.finish()
    rig.finish()
    rig.serve(older, newer)
    rig.tick(times=5)
    assert rig.running() is None, "and from here it is as any other"


def test_what_serves_stays_while_its_jobs_make_it_again(taken_back: tuple[Rig, Checkpoint, Checkpoint]) -> None:
    rig, _older, newer = taken_back
    rig.context.queue.move(rig.context.queue.waiting()[0], "active")
    rig.tick(times=3)
    assert rig.running() is None
    again = commit(rig.workspace, 20, [ended(JOB.format(2))])
    job = rig.context.queue.active()
    assert job is not None and again.id == newer.id
    rig.context.queue.move(job, "done")
    rig.tick(times=3)
    assert rig.running() is None
    assert rig.judging.at_rest(rig.clock())
