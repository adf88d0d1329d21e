"""A root whose queue is filled by hand, so that the trainer can be run, killed and looked at without a daemon.

Used by the training runners of this folder and by the trainer's tests.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from core.atomic import sha256_file, write_json
from core.chat_templates import ChatEncoder
from core.checkpoints import Catalogue, Checkpoint
from core.job_queue import Job, JobQueue, new_job_id, new_verdict
from core.paths import Workspace
from core.settings import Settings, load_settings
from core.status import iso_now, read_status, write_status
from core.validation.rows import row_sha256
from core.validation.token_cache import TokenCacheWriter
from trainer.models.tiny import make_tiny
from trainer.run import Run
from trainer.worker import Did, Worker

SETTINGS = {
    "hyperparams": {"batch_size": 4, "learning_rate": 0.003, "epochs": 2},
    "trainer": {"threads": 1, "warmup_steps": 2, "checkpoint_every_steps": 3},
}
Rows = Sequence[Mapping[str, Any]]


def chat(question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def chats(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows that differ in content and length."""
    return [chat(f"what is {n}?", f"it is {n}" + " indeed" * (n % 5)) for n in range(first, first + count)]


class TrainingFarm:
    """One root, its queue, and trainers over it."""

    def __init__(self, root: Path, **config: Any) -> None:
        self.workspace = Workspace(root)
        root.mkdir(parents=True, exist_ok=True)
        self.workspace.make_folders()
        merged = {key: {**SETTINGS.get(key, {}), **config.get(key, {})} for key in {*SETTINGS, *config}}
        write_json(self.workspace.config_file, merged)
        make_tiny(root / "models" / "dropforge-tiny", 0)
        self.encoder = ChatEncoder.from_folder(root / "models" / "dropforge-tiny")
        self.queue = JobQueue(self.workspace)
        self._seq = 0
        self._last_id: str | None = None

    @property
    def settings(self) -> Settings:
        return load_settings(self.workspace, env={})

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.workspace, "main")

    def drop(self, rows: Rows, name: str = "rows.jsonl", lane: str = "normal") -> Job:
        """Put a file into the queue as the daemon would after its gates."""
        self._last_id = new_job_id(self._last_id)
        folder = self.workspace.claim_dir / self._last_id
        folder.mkdir()
        data = folder / name
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        writer = TokenCacheWriter(folder / "tokens")
        for number, row in enumerate(rows):
            writer.add(self.encoder.encode_row(row), number, row_sha256(row))
        writer.finish(self.encoder.fingerprint(self.settings.hyperparams.max_length))
        verdict = new_verdict(
            job_id=self._last_id, file=name, sha256=sha256_file(data), bytes=data.stat().st_size,
            rows=len(rows), rows_train=len(rows), state="queued", spec="chat_sft_v1", received_at=iso_now(),
        )  # fmt: skip
        write_json(folder / "verdict.json", verdict)
        return self.queue.put(folder, lane)

    def order(self, command: str, **more: Any) -> int:
        """Write status/orders.json as the daemon would. Returns its seq."""
        before = read_status(self.workspace.status_file("orders.json")) or {"seq": 0}
        seq = before["seq"] + 1
        order = {"seq": seq, "command": command, "paused": command == "pause", **more}
        write_status(self.workspace.status_file("orders.json"), order)
        return seq

    def worker(self) -> Worker:
        return Worker(self.workspace, self.settings)

    def train(self, worker: Worker | None = None) -> Worker:
        """Tick a trainer in this process until nothing is left to do."""
        worker = worker or self.worker()
        while worker.tick() is Did.WORK:
            pass
        return worker

    def start(self, **environment: str) -> "subprocess.Popen[bytes]":
        """Start a real trainer process on this root."""
        argv = [sys.executable, "-m", "trainer", "--root", str(self.workspace.root)]
        return subprocess.Popen(argv, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})

    def status(self) -> dict[str, Any]:
        return read_status(self.workspace.status_file("training_status.json")) or {}

    def lane(self, name: str) -> list[str]:
        return [job.job_id for job in self.queue.jobs(name)]

    def head(self) -> Checkpoint:
        return self.catalogue.committed()[-1]

    def passes(self) -> list[tuple[str, int, int]]:
        """(job id, row, epoch) of every row pass in the surviving weights, in the order they were trained."""
        found = []
        for manifest in self.catalogue.manifests():
            records = np.load(self.catalogue.trained_rows_file(manifest["id"]))
            found += [(r["job"].decode(), int(r["row"]), int(r["epoch"])) for r in records]
        return found


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Weights and moments of a checkpoint, by file and name."""
    files = sorted(checkpoint.folder.glob("*.safetensors"))
    return {f"{file.name}:{name}": t for file in files for name, t in load_file(file).items()}


def weights_in(run: Run) -> dict[str, Tensor]:
    """Copies of weights and moments in memory."""
    engine = run.engine_ready()
    tensors = {**engine.trainable, **engine.optimizer_tensors()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Equal in every bit."""
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def tick_until_step(worker: Worker, step: int) -> None:
    """Train until so many steps of the run are taken, and until the commit begun by then is on the disk.

    Raises:
        RuntimeError: the worker finds nothing to do before.
    """
    while worker.run.state.step < step:
        if worker.tick() is not Did.WORK:
            raise RuntimeError(f"nothing to do at step {worker.run.state.step}")
    worker.run.settle()  # a thread of a worker that is dropped must not write into its successor's root
