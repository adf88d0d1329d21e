"""How many threads the judge takes."""

import os

from core.status import write_status
from judge_farm import Farm
from trainer.evaluate import __main__ as judge


def test_a_team_of_threads_is_for_large_models_on_an_idle_machine(workspace, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert judge._threads(workspace, "main") == 1
    Farm(workspace)  # a base of one byte
    assert judge._threads(workspace, "main") == 1
    monkeypatch.setattr(judge, "_SMALL_BYTES", 1)
    assert judge._threads(workspace, "main") == 3
    write_status(workspace.status_file("training_status.json"), {"status": "training"})
    assert judge._threads(workspace, "main") == 1
    write_status(workspace.status_file("training_status.json"), {"status": "idle"})
    assert judge._threads(workspace, "main") == 3
