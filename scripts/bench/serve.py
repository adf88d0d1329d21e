"""Serving speed through HTTP against transformers on the same model, interleaved.

    PYTHONPATH=tests python -m scripts.bench.serve [--rounds 3]


Reads    nothing          Writes  a temporary root, removed at the end; results as JSON lines on stdout
Units    tokens a second, milliseconds
Method   a random Qwen3 of 29 M parameters, prompts of 8-120 tokens, 64 new tokens each, greedy, prefill included; every
         round runs each mode once, ratios are medians over rounds. One stream a client, all clients start at once
"""

import argparse
import contextlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from core.checkpoints import Catalogue
from core.paths import Workspace
from serving_rig import FIELDS, ServerProcess, place
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


class Client(threading.Thread):
    """One streamed completion; keeps when each chunk came."""

    def __init__(self, port: int, prompt: Sequence[int], max_tokens: int = NEW_TOKENS) -> None:
        super().__init__()
        self._port, self._prompt, self._max_tokens = port, list(prompt), max_tokens
        self.times: list[float] = []
        self.tokens = 0
        self.text = ""

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        body = {"prompt": self._prompt, "max_tokens": self._max_tokens, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        self.began = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if chunk["choices"] and chunk["choices"][0]["text"]:
                    self.times.append(time.perf_counter())
                    self.text += chunk["choices"][0]["text"]
                if chunk.get("usage"):
                    self.tokens = chunk["usage"]["completion_tokens"]
        connection.close()


def through_http(port: int, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """All prompts at once, one client each."""
    clients = [Client(port, prompt) for prompt in prompts]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    seconds = time.perf_counter() - began
    first = sorted((c.times[0] - c.began) * 1e3 for c in clients if c.times)
    gaps = sorted((b - a) * 1e3 for c in clients for a, b in zip(c.times, c.times[1:], strict=False))
    return {
        "tok_s": sum(c.tokens for c in clients) / seconds,
        "ttft_p50_ms": first[len(first) // 2],
        "ttft_p95_ms": first[min(len(first) - 1, int(len(first) * 0.95))],
        "gap_p50_ms": gaps[len(gaps) // 2],
        "gap_p99_ms": gaps[int(len(gaps) * 0.99)],
    }


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


def gaps_while_prompts_arrive(port: int, random: np.random.Generator) -> dict[str, float]:
    """Gaps between tokens of 4 streams while three 2,000-token prompts arrive one after the other."""
    streams = [Client(port, random.integers(10, VOCABULARY, 30).tolist(), 200) for _ in range(4)]
    for stream in streams:
        stream.start()
    time.sleep(0.5)
    for _ in range(3):
        long = Client(port, random.integers(10, VOCABULARY, 2000).tolist(), 1)
        long.start()
        long.join()
    for stream in streams:
        stream.join()
    gaps = sorted((b - a) * 1e3 for s in streams for a, b in zip(s.times, s.times[1:], strict=False))
    median, p99 = gaps[len(gaps) // 2], gaps[int(len(gaps) * 0.99)]
    return {"gap_p50_ms": median, "gap_p99_ms": p99, "p99_over_p50": p99 / median}


def report(name: str, values: dict[str, float]) -> None:
    print(json.dumps({"name": name, **{key: round(value, 2) for key, value in values.items()}}), flush=True)


def measure(server: ServerProcess, model: Qwen3ForCausalLM, rounds: int, peers: bool) -> None:
    random = np.random.default_rng(0)
    for width in (1, 8, 32):
        prompts = [random.integers(10, VOCABULARY, random.integers(8, 121)).tolist() for _ in range(width)]
        modes: dict[str, Callable[[], float]] = {"generate": lambda p=prompts: generate_one_by_one(model, p[:8])}  # type: ignore[misc]
        if peers and width > 1:
            modes["generate_batch"] = lambda p=prompts: generate_batch(model, p)  # type: ignore[misc]
        ours: list[dict[str, float]] = []
        theirs: dict[str, list[float]] = {name: [] for name in modes}
        through_http(server.port, prompts[:2])
        for _ in range(rounds):
            ours.append(through_http(server.port, prompts))
            for name, mode in modes.items():
                theirs[name].append(mode())
        report(f"ours, {width} clients", {key: statistics.median(o[key] for o in ours) for key in ours[0]})
        for name, rates in theirs.items():
            ratios = [mine["tok_s"] / rate for mine, rate in zip(ours, rates, strict=True)]
            report(f"{name}, {width}", {"tok_s": statistics.median(rates), "ours_over_it": statistics.median(ratios)})
    report("4 streams while 2,000-token prompts arrive", gaps_while_prompts_arrive(server.port, random))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Serving speed through HTTP against transformers, interleaved.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-batch-peer", action="store_true", help="leave transformers' generate_batch out")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads on both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workspace, checkpoint, body = build(Path(folder) / "root")
        server = ServerProcess(workspace, "inference.max_streams=32")
        server.env["OMP_NUM_THREADS"] = str(options.threads)
        server.start()
        stack.callback(server.kill)
        answer = server.post("/admin/reload", body)
        if answer.status_code != 200:
            raise SystemExit(answer.text)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
        print(json.dumps({"torch_threads": torch.get_num_threads(), "reload": answer.json()["seconds"]}), flush=True)
        measure(server, model, options.rounds, not options.no_batch_peer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
