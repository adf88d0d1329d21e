"""The daily report: when it is made, and what becomes of it."""

import datetime
import json

import pytest

from core.daemon.children import Children
from core.daemon.daily_report import DailyReport
from core.daemon.supervisor import Supervisor
from daemon_rig import FakeSpawn, make_context


class Rig:
    """A schedule with a clock of ours and a child that ends when told."""

    def __init__(self, workspace, clock, **config):
        self.workspace, self.clock = workspace, clock
        self.context = make_context(workspace, **config)
        self.spawn = FakeSpawn()
        self.children = Children(workspace, (), Supervisor(start=self.spawn))
        self.local = datetime.datetime(2026, 11, 22, 1, 0)
        self.report = DailyReport(self.context, self.children, lambda: self.local)

    def to(self, day, hour, minute=0):
        self.local = datetime.datetime(2026, 11, day, hour, minute)
        self.clock.advance(1.0)
        self.children.supervisor.tick(self.clock())
        self.report.tick(self.clock())

    def finish(self, code=0):
        self.spawn.processes[-1].code = code
        self.to(self.local.day, self.local.hour, self.local.minute)

    def events(self):
        lines = self.workspace.status_file("events.jsonl").read_text().splitlines()
        return [json.loads(line)["kind"] for line in lines]


@pytest.fixture
def rig(workspace, clock):
    return Rig(workspace, clock)


def test_one_report_a_day_at_three_by_default(rig):
    for day, hour, made in ((22, 2, 0), (22, 3, 1), (22, 4, 1), (22, 23, 1), (23, 2, 1), (23, 4, 2)):
        rig.to(day, hour)
        assert len(rig.spawn.processes) == made
        if made and rig.spawn.processes[-1].code is None:
            rig.finish()
    argv = rig.spawn.processes[0].spec.argv
    assert argv[1:] == ("-m", "monitoring.reports", "--root", str(rig.workspace.root), "--send")
    assert rig.events() == ["report", "report"]


def test_a_daemon_that_starts_after_the_hour_does_not_make_up_for_it(workspace, clock):
    rig = Rig(workspace, clock, report={"at": "00:30"})
    rig.to(22, 5)
    assert rig.spawn.processes == []
    rig.to(23, 0, 31)
    assert len(rig.spawn.processes) == 1


def test_without_an_hour_there_is_no_report(workspace, clock):
    rig = Rig(workspace, clock, report={"at": None})
    for hour in range(24):
        rig.to(23, hour)
    assert rig.spawn.processes == []


def test_a_report_that_cannot_be_made_is_noted(rig):
    rig.to(22, 3)
    rig.finish(2)
    assert rig.events() == ["report_failed"]
    rig.to(23, 3)
    assert len(rig.spawn.processes) == 2
