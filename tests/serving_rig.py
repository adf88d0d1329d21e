"""Published checkpoints and real server processes for the tests of the inference room."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.atomic import sha256_file
from core.checkpoints import MANIFEST_FILE, Catalogue, Checkpoint
from core.paths import Workspace
from trainer.models.lora import add_adapter
from trainer.models.tiny import make_tiny

FIELDS: Mapping[str, Any] = {
    "tokenizer_sha256": "0" * 64,
    "chat_template_sha256": None,
    "profile": None,
    "config_sha256": "0" * 64,
    "versions": {},
    "jobs": [],
    "train_loss": None,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commit_tiny(
    workspace: Workspace,
    step: int,
    parent: Checkpoint | None = None,
    scale: float = 1.0,
    context_tokens: int | None = None,
) -> Checkpoint:
    """Commit an untrained tiny model, seeded by the step; `scale` sharpens its answers so that texts vary."""
    catalogue = Catalogue(workspace, "main")
    staged = catalogue.stage(step)
    make_tiny(staged, seed=step)
    if context_tokens is not None:
        config = json.loads((staged / "config.json").read_text())
        (staged / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context_tokens}))
    if scale != 1.0:
        weights = load_file(staged / "model.safetensors")
        for name, tensor in weights.items():
            weights[name] = tensor if "norm" in name else tensor * scale
        save_file(weights, staged / "model.safetensors", {"format": "pt"})
    return commit_folder(catalogue, staged, step, parent)


def commit_adapter(
    workspace: Workspace, step: int, parent: Checkpoint, base: Checkpoint, std: float = 0.5
) -> Checkpoint:
    """Commit a LoRA adapter of the base with random weights on both sides, so that it changes answers."""
    catalogue = Catalogue(workspace, "main")
    staged = catalogue.stage(step)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    adapted = add_adapter(model, rank=4, seed=step, base_folder=base.folder)
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=std, generator=torch.Generator().manual_seed(step))
    adapted.save_pretrained(staged)
    (staged / "README.md").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (base.folder / name).exists():
            (staged / name).write_bytes((base.folder / name).read_bytes())
    return commit_folder(catalogue, staged, step, parent)


def commit_folder(catalogue: Catalogue, staged: Path, step: int, parent: Checkpoint | None) -> Checkpoint:
    """Commit a staged folder of weights and tokenizer as a step of the run."""
    (staged / "trained_rows.npy").write_bytes(b"")
    base = {"name": "dropforge-tiny", "sha256": None} if parent is None else parent.manifest["base"]
    return catalogue.commit(
        staged, {**FIELDS, "step": step, "parent": None if parent is None else parent.id, "base": base}
    )


def place(checkpoint: Checkpoint, models_dir: Path) -> dict[str, str]:
    """Copy a checkpoint into incoming/ as rsync would. Returns the body for POST /admin/reload."""
    target = models_dir / "incoming" / checkpoint.id
    target.mkdir(parents=True)
    for name in (*checkpoint.manifest["files"], MANIFEST_FILE):
        (target / name).write_bytes((checkpoint.folder / name).read_bytes())
    return {"id": checkpoint.id, "manifest_sha256": sha256_file(checkpoint.manifest_file)}


class ServerProcess:
    """`python -m inference` of one root on a port of its own."""

    def __init__(self, workspace: Workspace, *overrides: str, env: Mapping[str, str] | None = None) -> None:
        self.workspace = workspace
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self.overrides = [f"inference.port={self.port}", *overrides]
        self.process: subprocess.Popen[bytes] | None = None

    def options(self) -> list[str]:
        sets = [part for item in self.overrides for part in ("--set", item)]
        return ["--root", str(self.workspace.root), *sets]

    def start(self, *, ready: bool = False) -> "ServerProcess":
        log = (self.workspace.root / "server.log").open("ab")
        with log:
            argv = [sys.executable, "-m", "inference", *self.options()]
            self.process = subprocess.Popen(argv, env=self.env, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(requests.ConnectionError):
                if self.get("/ready" if ready else "/health").status_code == 200:
                    return self
            time.sleep(0.05)
        raise AssertionError(f"the server is not up: {self.log()}")

    @property
    def popen(self) -> "subprocess.Popen[bytes]":
        assert self.process is not None, "not started"
        return self.process

    def log(self) -> str:
        return (self.workspace.root / "server.log").read_text()

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **options)

    def post(self, path: str, body: object, *, timeout_s: float = 60, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=timeout_s, **options)

    def chat(self, text: str = "hello", **fields: Any) -> requests.Response:
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **fields}
        return self.post("/v1/chat/completions", body)

    def publish(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-m", "inference.publish", *self.options(), *arguments]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False, timeout=120)

    def stop(self) -> int:
        self.popen.terminate()
        return self.popen.wait(60)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(120)  # a machine that was frozen meanwhile needs its time


@contextlib.contextmanager
def running(workspace: Workspace, *overrides: str, env: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    server = ServerProcess(workspace, *overrides, env=env)
    try:
        yield server.start()
    finally:
        server.kill()


def ready_root(
    folder: Path, checkpoints: Sequence[int] = (0, 10), scale: float = 6.0, context_tokens: int | None = None
) -> tuple[Workspace, list[Checkpoint]]:
    """A root with a chain of untrained tiny checkpoints."""
    workspace = Workspace(folder)
    folder.mkdir(parents=True)
    workspace.make_folders()
    workspace.config_file.write_text("{}\n")
    chain: list[Checkpoint] = []
    for step in checkpoints:
        chain.append(commit_tiny(workspace, step, chain[-1] if chain else None, scale, context_tokens))
    return workspace, chain
