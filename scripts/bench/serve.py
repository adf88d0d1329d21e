"""Serving speed through HTTP against transformers on the same model, interleaved.

    PYTHONPATH=tests python -m scripts.bench.serve [--rounds 3] [--serve FOLDER]

--serve: a folder with fastapi and uvicorn (pip install --target FOLDER --no-deps fastapi starlette uvicorn), which only
`transformers serve` needs; it is then measured instead of the peers in this process.

Reads    nothing          Writes  a temporary root, removed at the end; results as JSON lines on stdout
Units    tokens a second, milliseconds
Method   a random Qwen3 of 29 M parameters, prompts of 8-120 tokens, 64 new tokens each, greedy, prefill included; every
         round runs each mode once, ratios are medians over rounds. One stream a client, all clients start at once, from
         a process of their own. "engine" is scheduler and model in this process, without HTTP
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from core.chat_templates import ChatEncoder
from core.checkpoints import Catalogue
from core.paths import Workspace
from inference.engine.loading import load_base
from inference.engine.runner import Runner
from inference.metrics import ServerMetrics
from inference.sampling import Sampling
from inference.scheduler import Scheduler
from inference.ticket import Piece, Ticket
from serving_rig import FIELDS, ServerProcess, free_port, place
from stream_clients import ask
from trainer.models.tiny_tokenizer import write_tokenizer

VOCABULARY = 8192
NEW_TOKENS = 64


def build(root: Path) -> tuple[Workspace, Path, dict[str, str]]:
    """A root whose checkpoint-0 is the 29 M-parameter model, placed in incoming/."""
    workspace = Workspace(root)
    root.mkdir()
    workspace.make_folders()
    workspace.config_file.write_text("{}\n")
    catalogue = Catalogue(workspace, "main")
    staged = catalogue.stage(0)
    write_tokenizer(staged)
    tokenizer = Tokenizer.from_file(str(staged / "tokenizer.json"))
    tokenizer.add_tokens([f" w{n}" for n in range(tokenizer.get_vocab_size(), VOCABULARY)])
    tokenizer.save(str(staged / "tokenizer.json"))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(staged)
    (staged / "trained_rows.npy").write_bytes(b"")
    fields = {**FIELDS, "step": 0, "parent": None, "base": {"name": "m30", "sha256": None}}
    checkpoint = catalogue.commit(staged, fields)
    return workspace, checkpoint.folder, place(checkpoint, root / "served")


def prompt_text(ids: Sequence[int]) -> str:
    """A prompt whose tokens are these; `transformers serve` takes no ids."""
    return "".join(f" w{token}" for token in ids)


def through_http(port: int, prompts: Sequence[Sequence[int]], model: str | None = None) -> dict[str, float]:
    """All prompts at once, one client each; `model` only for a peer."""
    body: dict[str, object] = {"max_tokens": NEW_TOKENS, "temperature": 0}
    body |= {"stream_options": {"include_usage": True}} if model is None else {"model": model}
    clients = ask(port, "/v1/completions", [{**body, "prompt": prompt_text(prompt)} for prompt in prompts])
    seconds = max(client["end_ms"] for client in clients) / 1e3
    first = sorted(client["first_ms"] for client in clients)
    gaps = gaps_of(clients)
    return {
        "tok_s": sum(client["tokens"] for client in clients) / seconds,
        "requests_s": len(clients) / seconds,
        "ttft_p50_ms": first[len(first) // 2],
        "ttft_p95_ms": first[min(len(first) - 1, int(len(first) * 0.95))],
        "gap_p50_ms": gaps[len(gaps) // 2],
        "gap_p99_ms": gaps[int(len(gaps) * 0.99)],
    }


def gaps_of(clients: Sequence[Mapping[str, Any]]) -> list[float]:
    """Milliseconds between the pieces of text of each client, sorted."""
    return sorted(later - sooner for c in clients for sooner, later in itertools.pairwise(c["times_ms"]))


class Engine:
    """Scheduler and model of the server, in this process."""

    def __init__(self, checkpoint: Path) -> None:
        loading, network = load_base(checkpoint, torch.device("cpu")), None
        while network is None:
            try:
                next(loading)
            except StopIteration as end:
                network = end.value
        self._model = Runner(network, 4096, threads=torch.get_num_threads())
        self._codec = ChatEncoder.from_folder(checkpoint)
        self._scheduler = Scheduler(max_streams=32, max_waiting=32, metrics=ServerMetrics())

    def run(self, prompts: Sequence[Sequence[int]]) -> float:
        """Returns tokens a second."""
        greedy = Sampling(temperature=0.0)
        tickets = [Ticket(self._model, self._codec, p, sampling=greedy, max_tokens=NEW_TOKENS) for p in prompts]
        began = time.perf_counter()
        for ticket in tickets:
            self._scheduler.submit(ticket)
        while not all(ticket.done for ticket in tickets):
            self._scheduler.tick()
        seconds = time.perf_counter() - began
        ends = [ticket.events.get() for ticket in tickets]
        return sum(end.completion_tokens for end in ends if isinstance(end, Piece)) / seconds


def generate_one_by_one(model: Qwen3ForCausalLM, prompts: Sequence[Sequence[int]]) -> float:
    """transformers' generate, one prompt after the other. Returns tokens a second."""
    began, tokens = time.perf_counter(), 0
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
        tokens += out.shape[1] - ids.shape[1]
    return tokens / (time.perf_counter() - began)


def generate_batch(model: Qwen3ForCausalLM, prompts: Sequence[Sequence[int]]) -> float:
    """transformers' continuous batching. Returns tokens a second."""
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=2, pad_token_id=0)
    sizes = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=512)
    began = time.perf_counter()
    made = model.generate_batch(
        [list(p) for p in prompts], generation_config=config, continuous_batching_config=sizes, progress_bar=False
    )
    seconds = time.perf_counter() - began
    return sum(len(one.generated_tokens) for one in made.values()) / seconds


class TransformersServe:
    """`transformers serve` as a process, with or without continuous batching."""

    def __init__(self, checkpoint: Path, packages: str, batching: bool) -> None:
        self.port, self.model = free_port(), str(checkpoint)
        argv = [sys.executable, "-m", "transformers.cli.transformers", "serve", self.model, "--port", str(self.port)]
        argv += ["--device", "cpu", "--dtype", "float32", "--attn-implementation", "sdpa", "--log-level", "error"]
        if batching:
            argv += ["--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "512"]
        self.process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": packages, "HF_HUB_OFFLINE": "1"})
        deadline = time.monotonic() + 120
        while not self._up():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit("transformers serve does not start")
            time.sleep(0.2)

    def _up(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"http://127.0.0.1:{self.port}/health", timeout=5).ok
        return False

    def run(self, prompts: Sequence[Sequence[int]]) -> float:
        """Returns tokens a second."""
        return through_http(self.port, prompts, self.model)["tok_s"]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def gaps_while_prompts_arrive(port: int, random: np.random.Generator) -> dict[str, float]:
    """Gaps between tokens of 4 streams while three 2,000-token prompts arrive one after the other."""
    bodies = [
        {"prompt": random.integers(10, VOCABULARY, 30).tolist(), "max_tokens": 200, "temperature": 0} for _ in range(4)
    ]
    with ThreadPoolExecutor(1) as pool:
        streams = pool.submit(ask, port, "/v1/completions", bodies)
        time.sleep(1.0)
        for _ in range(3):
            long = {"prompt": random.integers(10, VOCABULARY, 2000).tolist(), "max_tokens": 1, "temperature": 0}
            requests.post(f"http://127.0.0.1:{port}/v1/completions", json=long, timeout=120).raise_for_status()
        gaps = gaps_of(streams.result())
    median, p99 = gaps[len(gaps) // 2], gaps[int(len(gaps) * 0.99)]
    return {"gap_p50_ms": median, "gap_p99_ms": p99, "p99_over_p50": p99 / median}


def report(name: str, values: Mapping[str, float]) -> None:
    print(json.dumps({"name": name, **{key: round(value, 2) for key, value in values.items()}}), flush=True)


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


Peer = Callable[[Sequence[Sequence[int]]], float]


def measure(port: int, peers: Mapping[str, Peer], widths: Sequence[int], rounds: int) -> None:
    """Ours and each peer in turn; each peer returns tokens a second; all answer the same number of tokens, so that
    requests a second have the same ratio."""
    random = np.random.default_rng(0)
    for run in (lambda prompts: through_http(port, prompts), *peers.values()):
        run(random.integers(3000, VOCABULARY, (2, 50)).tolist())  # everybody warms up
    for width in widths:
        lengths = random.integers(8, 121, width)
        theirs: dict[str, list[float]] = {name: [] for name in peers}
        ours: list[dict[str, float]] = []
        for _ in range(rounds):
            prompts = [random.integers(3000, VOCABULARY, length).tolist() for length in lengths]
            ours.append(through_http(port, prompts))
            for name, rates in theirs.items():
                rates.append(peers[name](prompts))
        report(f"ours, {width} clients", medians(ours))
        for name, made in theirs.items():
            ratios = [mine["tok_s"] / rate for mine, rate in zip(ours, made, strict=True)]
            report(f"{name}, {width}", {"tok_s": statistics.median(made), "ours_over_it": statistics.median(ratios)})


def serving_peers(checkpoint: Path, packages: str, stack: contextlib.ExitStack) -> dict[str, Peer]:
    peers: dict[str, Peer] = {}
    for name, batching in (("transformers serve", False), ("transformers serve, continuous batching", True)):
        server = TransformersServe(checkpoint, packages, batching)
        stack.callback(server.stop)
        peers[name] = server.run
    return peers


def in_process_peers(checkpoint: Path) -> dict[str, Peer]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
    return {
        "engine alone": Engine(checkpoint).run,
        "generate": lambda prompts: generate_one_by_one(model, prompts[:8]),
        "generate_batch": lambda prompts: generate_batch(model, prompts),
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Serving speed through HTTP against transformers, interleaved.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--serve", metavar="FOLDER", help="compare with `transformers serve`; its packages are here")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads on both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workspace, checkpoint, body = build(Path(folder) / "root")
        server = ServerProcess(workspace, "inference.max_streams=32", env={"OMP_NUM_THREADS": str(options.threads)})
        server.start()
        stack.callback(server.kill)
        answer = server.post("/admin/reload", body)
        if answer.status_code != 200:
            raise SystemExit(answer.text)
        print(json.dumps({"torch_threads": options.threads, "reload": answer.json()["seconds"]}), flush=True)
        peers = serving_peers(checkpoint, options.serve, stack) if options.serve else in_process_peers(checkpoint)
        measure(server.port, peers, options.clients, options.rounds)
        if not options.serve:
            gaps = gaps_while_prompts_arrive(server.port, np.random.default_rng(1))
            report("4 streams while 2,000-token prompts arrive", gaps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
