"""From the decision to promote to the first answer by the new id: where the time goes, folder to folder and over ssh.

    PYTHONPATH=tests python -m scripts.bench.deploy [--sizes tiny 30M 125M] [--times 3]

Reads    nothing          Writes  a temporary root a size, removed at the end
Units    seconds; medians over `--times` deployments of each kind
Method   the publisher runs as the daemon runs it, a process of its own, against a server that serves another checkpoint
         of the same run meanwhile. `start`: until the publisher works (interpreter, imports, hashes of what it sends);
         over ssh a real sshd on loopback. Full checkpoints and LoRA adapters take turns, their weights are random
"""

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from core.checkpoints import Catalogue, Checkpoint
from core.paths import Workspace
from loopback_ssh import loopback_sshd, write_hosts
from serving_rig import ServerProcess, commit_adapter, commit_folder, commit_tiny
from trainer.models.tiny_tokenizer import write_tokenizer

SHAPES = {"30M": (8, 512, 1536, 8192), "125M": (12, 768, 2048, 51_200)}  # layers, hidden, MLP, vocabulary
STAGES = ("start", "transfer", "server_hash", "server_load", "server_gate", "server_swap", "first_answer")


def commit_random(workspace: Workspace, size: str, step: int, parent: Checkpoint | None) -> Checkpoint:
    """A random model of the size, committed."""
    if size == "tiny":
        return commit_tiny(workspace, step, parent, scale=3.0)
    layers, hidden, mlp, vocabulary = SHAPES[size]
    catalogue = Catalogue(workspace, "main")
    staged = catalogue.stage(step)
    write_tokenizer(staged)
    torch.manual_seed(step)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(staged)
    return commit_folder(catalogue, staged, step, parent)


def make_root(folder: Path, size: str, times: int) -> tuple[Workspace, dict[str, list[Checkpoint]]]:
    """A run: the base, then full checkpoints and adapters in turn."""
    workspace = Workspace(folder)
    folder.mkdir()
    workspace.make_folders()
    workspace.config_file.write_text("{}\n")
    base = commit_random(workspace, size, 0, None)
    made: dict[str, list[Checkpoint]] = {"full": [], "adapter": []}
    newest = base
    for step in range(10, 10 + 20 * times, 20):
        newest = commit_random(workspace, size, step, newest)
        made["full"].append(newest)
        newest = commit_adapter(workspace, step + 10, newest, base, std=0.02)
        made["adapter"].append(newest)
    return workspace, {"base": [base], **made}


def deploy(server: ServerProcess, checkpoint: Checkpoint) -> dict[str, float]:
    """Publish one and see it answer. Returns seconds by stage, and of the whole."""
    began = time.perf_counter()
    done = server.publish(checkpoint.id)
    whole = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{checkpoint.id}: {done.stderr}")
    doc = json.loads((server.workspace.evaluation_dir("main", checkpoint.id) / "deploy.json").read_text())
    said = doc["seconds"]
    stages = {name: float(said.get(name, 0.0)) for name in STAGES[1:]}
    return {"start": whole - sum(stages.values()), **stages, "whole": whole}


@contextlib.contextmanager
def served(workspace: Workspace, folder: Path, way: str) -> Iterator[ServerProcess]:
    """A server, reached folder to folder or through sshd."""
    server = ServerProcess(workspace)
    with contextlib.ExitStack() as stack:
        if way == "ssh":
            sshd = stack.enter_context(loopback_sshd(folder / "ssh"))
            server.overrides.append(f"inference.models_dir={write_hosts(workspace, server, sshd)}")
        stack.callback(server.kill)
        yield server.start()
    shutil.rmtree(folder / "other-machine", ignore_errors=True)


def measure(size: str, times: int) -> dict[tuple[str, str], list[dict[str, float]]]:
    """{(kind, way): [seconds by stage]}."""
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace, chain = make_root(folder / "root", size, times)
        for way in ("folder", "ssh"):
            with served(workspace, folder, way) as server:
                deploy(server, chain["base"][0])
                for full, adapter in zip(chain["full"], chain["adapter"], strict=True):
                    found["full", way].append(deploy(server, full))
                    found["adapter", way].append(deploy(server, adapter))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Seconds from the decision to the first answer.")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "30M", "125M"], choices=["tiny", *SHAPES])
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    print("| model | kind | way | " + " | ".join(name.removeprefix("server_") for name in STAGES) + " | whole |")
    print("|---" * (len(STAGES) + 4) + "|")
    for size in options.sizes:
        for (kind, way), runs in measure(size, options.times).items():
            cells = [f"{statistics.median(run[name] for run in runs):.2f}" for name in (*STAGES, "whole")]
            print(f"| {size} | {kind} | {way} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
