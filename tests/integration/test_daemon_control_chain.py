"""Against a real trainer: pause, go on, commit, skip, retry, stop, resume, cancel, rewind; an edit that is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.control import write_command, write_request
from core.job_queue import Job, JobQueue
from core.paths import Workspace
from core.status import read_status

Wait = Callable[..., None]
ROWS = 60


class Chain:
    """A daemon with a real trainer on the embedded model; no server, judging waits for none."""

    def __init__(self, root: Path, repository: Path, wait: Wait) -> None:
        self.workspace, self.wait, self._repository = Workspace(root), wait, repository
        init = [sys.executable, "-m", "core.cli", "init", str(root)]
        subprocess.run(init, cwd=repository, check=True, capture_output=True)
        document = json.loads(self.workspace.config_file.read_text())
        document["inbox"]["settle_s"] = 0
        document["hyperparams"]["epochs"] = 40
        document["trainer"]["threads"] = 1
        document["inference"]["port"] = 9  # discard: nothing answers there
        self.workspace.config_file.write_text(json.dumps(document))
        self.queue = JobQueue(self.workspace)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "core.daemon", "--root", str(self.workspace.root), "--server-grace-s", "0"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(argv, cwd=self._repository, env=env, stderr=subprocess.DEVNULL)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)

    def drop(self, name: str) -> None:
        turns = [
            {"messages": [{"role": "user", "content": f"{name} {row}"}, {"role": "assistant", "content": "yes " * 30}]}
            for row in range(ROWS)
        ]
        aside = self.workspace.inbox / f".{name}.tmp"
        aside.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
        aside.rename(self.workspace.inbox / name)

    def says(self, name: str) -> dict[str, Any]:
        return read_status(self.workspace.status_file(f"{name}.json")) or {}

    @property
    def step(self) -> int:
        return int(self.says("training_status").get("current_step") or 0)

    def training(self, beyond: int) -> None:
        self.wait(lambda: self.queue.active() is not None and self.step > beyond, 120, f"training beyond step {beyond}")

    def acknowledged(self, command: str) -> dict[str, Any]:
        """Wait for the acknowledgement of the newest such command."""

        def effective() -> bool:
            said = self.says("control")
            return said.get("command") == command and said.get("effective_at") is not None

        self.wait(effective, 60, f"the acknowledgement of {command}")
        return self.says("control")

    def only(self, lane: str) -> Job:
        self.wait(lambda: len(self.queue.jobs(lane)) == 1, 120, f"one job in {lane}")
        return self.queue.jobs(lane)[0]


@pytest.fixture
def chain(tmp_path: Path, repository: Path, wait_until: Wait) -> Iterator[Chain]:
    made = Chain(tmp_path / "root", repository, wait_until)
    yield made
    made.end()


@pytest.mark.slow
def test_every_command_does_what_it_says_to_a_real_trainer(chain: Chain) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        chain.drop(name)
    chain.start()
    chain.training(beyond=3)
    first = chain.queue.active()
    assert first is not None

    write_command(chain.workspace, "pause", reason="a look")
    paused = chain.acknowledged("pause")
    assert chain.says("daemon")["state"] == "paused"
    assert chain.step <= paused["step"]
    (chain.workspace.control_dir / "pause").unlink()
    chain.training(beyond=paused["step"] + 1)

    write_command(chain.workspace, "checkpoint")
    committed = chain.acknowledged("checkpoint")["checkpoint"]
    assert (chain.workspace.run_dir("main") / f"checkpoint-{committed.partition('-')[0]}" / "MANIFEST.json").exists()

    write_command(chain.workspace, "skip", reason="not this one")
    chain.acknowledged("skip")
    skipped = chain.only("failed")
    assert (skipped.job_id, skipped.verdict()["code"]) == (first.job_id, "skipped")
    assert not (chain.workspace.run_dir("main") / f"checkpoint-{committed.partition('-')[0]}").exists()

    chain.wait(lambda: (chain.queue.active() or first).job_id != first.job_id, 60, "the second job")
    second = chain.queue.active()
    assert second is not None
    chain.training(beyond=2)
    write_request(chain.workspace, "retry", id=first.job_id)
    assert chain.acknowledged("retry")["error"] is None
    assert chain.only("normal").job_id == first.job_id
    write_request(chain.workspace, "cancel", id=first.job_id)
    chain.acknowledged("cancel")
    assert chain.only("failed").verdict()["code"] == "cancelled"

    write_command(chain.workspace, "stop")
    assert chain.process is not None
    assert chain.process.wait(60) == 0
    stopped = chain.says("control")
    assert (stopped["command"], stopped["effective_at"] is not None) == ("stop", True)
    assert chain.only("active").job_id == second.job_id, "it is resumed, not thrown away"

    chain.start()
    done = chain.only("done")
    verdict = done.verdict()
    assert (done.job_id, verdict["state"]) == (second.job_id, "done")
    assert verdict["training"]["rows_trained"] == verdict["rows_train"] * 40

    write_request(chain.workspace, "rewind", id="0")
    assert chain.acknowledged("rewind")["error"] is None
    chain.wait(lambda: chain.queue.jobs("done") == [], 60, "the job to leave done/")
    chain.training(beyond=0)
    assert chain.queue.active() == Job(second.job_id, "active", chain.workspace.lane("active") / second.job_id)


@pytest.mark.slow
def test_a_trainer_started_after_another_run_was_refused_goes_on_in_the_run_that_holds(chain: Chain) -> None:
    workspace, good = chain.workspace, chain.workspace.config_file.read_text()
    chain.drop("a.jsonl")
    chain.start()
    chain.training(beyond=3)
    workspace.config_file.write_text(good.replace('"run": "main"', '"run": "second"'))
    chain.wait(lambda: "config_refused" in workspace.status_file("events.jsonl").read_text(), 30, "the refusal")
    assert chain.queue.active() is not None
    os.kill(chain.says("daemon")["children"]["trainer"]["pid"], signal.SIGKILL)
    chain.only("done")
    assert not workspace.run_dir("second").exists()
    workspace.config_file.write_text(good)
    verify = [sys.executable, "-m", "core.cli", "--root", str(workspace.root), "verify"]
    assert "ok: every promise is kept" in subprocess.run(verify, capture_output=True, text=True, check=True).stdout
