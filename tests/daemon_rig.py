"""A daemon whose clock, gate, worker and children are ours: tests call `tick` and look at what lies on the disk."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.checkpoints import Catalogue, Checkpoint
from core.daemon.background_worker import Checked, Finished, GateRequest, WorkerDiedError
from core.daemon.claims import ClaimDesk
from core.daemon.config_watch import ConfigWatch
from core.daemon.context import Context
from core.daemon.events import EventLog
from core.daemon.gating import Gating
from core.daemon.intake import Intake
from core.daemon.supervisor import ChildSpec
from core.daemon.wakeup import Wakeup
from core.job_queue import SIDECAR_SUFFIX, Job, JobQueue, data_file_in, new_verdict
from core.paths import WAITING_LANES, Workspace


def fake_gate(request: GateRequest) -> Checked:
    """A gate that reads its answer in the file: `bad` is refused, `nospec` needs a sidecar, `held` holds a row out."""
    folder, job_id, lane = request.folder, request.job_id, request.lane
    data = data_file_in(folder)
    content = data.read_bytes()
    verdict = new_verdict(
        job_id=job_id,
        state="queued",
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        rows=content.count(b"\n"),
        rows_train=content.count(b"\n"),
        level="quick",
    )
    sidecar = data.with_name(data.name + SIDECAR_SUFFIX)
    if os.path.exists(sidecar):
        lane = json.loads(sidecar.read_bytes()).get("priority", lane)
    if b"nospec" in content and not os.path.exists(sidecar):
        verdict |= {"state": "rejected", "code": "spec_unknown", "message": "no spec fits"}
    elif b"bad" in content or not content:
        verdict |= {"state": "rejected", "code": "bad_json", "message": "not JSON", "line": 1}
    elif b"held" in content:
        (folder / ".held_out.jsonl").write_bytes(content)
    return Checked(verdict, lane)


class InlineWorker:
    """A worker in this process. `deaths[job_id]` times it dies on that job; `raises` is raised instead of an answer."""

    def __init__(self) -> None:
        self.deaths: Counter[str] = Counter()
        self.raises: list[Exception] = []
        self.calls: list[str] = []
        self.hangs = 0
        self._finished: list[Finished] = []
        self._hanging: list[str] = []

    def __len__(self) -> int:
        return len(self._finished) + len(self._hanging)

    def kill(self) -> None:
        """What hangs ends as a death."""
        self.hangs -= 1
        self._finished += [Finished(key, None, WorkerDiedError("killed")) for key in self._hanging]
        self._hanging = []

    def submit(self, key: str, request: GateRequest) -> None:
        self.calls.append(key)
        if self.hangs:
            self._hanging.append(key)
        elif self.deaths[key]:
            self.deaths[key] -= 1
            self._finished.append(Finished(key, None, WorkerDiedError("killed")))
        elif self.raises:
            self._finished.append(Finished(key, None, self.raises.pop(0)))
        else:
            self._finished.append(Finished(key, fake_gate(request), None))

    def collect(self) -> list[Finished]:
        finished, self._finished = self._finished, []
        return finished


@dataclass
class FakeProcess:
    """A child that lives until told otherwise."""

    spec: ChildSpec
    pid: int
    code: int | None = None
    signals: list[int] = field(default_factory=list)

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, sig: int) -> None:
        self.signals.append(sig)


class FakeSpawn:
    """Stands for subprocess.Popen; `processes` are all that were started, in order."""

    def __init__(self) -> None:
        self.processes: list[FakeProcess] = []

    def __call__(self, spec: ChildSpec) -> FakeProcess:
        self.processes.append(FakeProcess(spec, 1000 + len(self.processes)))
        return self.processes[-1]

    def last(self, name: str) -> FakeProcess:
        return [process for process in self.processes if process.spec.name == name][-1]

    def names(self) -> list[str]:
        return [process.spec.name for process in self.processes]


def make_context(workspace: Workspace, **config: Any) -> Context:
    workspace.config_file.write_text(json.dumps(config))
    return Context(workspace, ConfigWatch(workspace), JobQueue(workspace), EventLog(workspace), Wakeup())


class IntakeRig:
    """An intake over a real folder with a frozen clock."""

    def __init__(self, workspace: Workspace, clock: Any, **config: Any) -> None:
        config.setdefault("inbox", {"settle_s": 2, "sidecar_wait_s": 10})
        self.workspace = workspace
        self.clock = clock
        self.context = make_context(workspace, **config)
        self.worker = InlineWorker()
        self.suffixes: tuple[str, ...] = (".jsonl",)
        self.restart()

    def restart(self) -> None:
        """A new daemon on the same folders."""
        desk = ClaimDesk(self.workspace, self.context.queue)
        gating = Gating(self.workspace.root, self.worker)  # type: ignore[arg-type]
        self.intake = Intake(self.context, desk, gating, self.suffixes, self.clock)

    def drop(self, name: str, content: str = '{"row": 1}\n', folder: str = "") -> Path:
        path = self.workspace.inbox / folder / name
        path.write_text(content)
        return path

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.intake.wake()
        self.intake.tick(self.clock())

    def settle(self) -> None:
        """Long enough for everything that lies there to be taken, checked and brought home."""
        self.tick()
        self.tick(2.5)
        for _ in range(40):
            self.tick(0.5)
            if self.intake.idle:
                return

    def lane(self, name: str) -> list[str]:
        """The names of the files in a lane, oldest first."""
        return [job.data_file.name for job in self.context.queue.jobs(name)]

    def rejected(self) -> list[Job]:
        folders = sorted(self.workspace.rejected_dir.iterdir())
        return [Job(folder.name, "rejected", folder) for folder in folders]

    def waiting(self) -> list[str]:
        return [name for lane in WAITING_LANES for name in self.lane(lane)]


def commit(workspace: Workspace, step: int, jobs: list[dict[str, Any]] | None = None, run: str = "main") -> Checkpoint:
    """Commit a checkpoint with made-up weights on top of the head."""
    catalogue = Catalogue(workspace, run)
    head = catalogue.head()
    staged = catalogue.stage(step)
    (staged / "model.safetensors").write_bytes(f"weights {step}".encode() * 50)
    (staged / "trained_rows.npy").write_bytes(b"rows")
    fields = {
        "step": step,
        "parent": head.id if head else None,
        "base": head.manifest["base"] if head else {"name": "tiny", "sha256": None},
        "tokenizer_sha256": "0" * 64,
        "chat_template_sha256": "0" * 64,
        "profile": None,
        "config_sha256": "0" * 64,
        "versions": {},
        "jobs": jobs or [],
        "train_loss": None,
    }
    return catalogue.commit(staged, fields)


def ended(job_id: str, rows: int = 10) -> dict[str, Any]:
    """A manifest's entry of a job that is complete."""
    return {
        "job_id": job_id,
        "file": "f.jsonl",
        "sha256": "0" * 64,
        "generator": "manual",
        "rows_train": rows,
        "rows_trained": rows,
        "epochs": 1,
    }
