"""Useful (non-padding) training tokens per second: our packed loop against transformers' Trainer and TRL, interleaved.

    OMP_WAIT_POLICY=active python -m scripts.bench.train [--model small|m30] [--rows 96] [--rounds 3] [--threads 2]
        [--python PYTHON_WITH_TRL] [--only NAME ...] [--results FILE]

Every contestant trains the same random rows with the same objective (all tokens) and AdamW (1e-3, 0.9, 0.95), 8 rows
a step, from the same weights, in a process of its own with the same environment (the memory settings that the
daemon gives its trainer); rounds are interleaved and medians printed. Everybody computes in fp32 but `ours`,
`ours_2048` and `ours_lora`, which take what `fp_precision: auto` takes on this machine, and the rows named bf16. The
share of the matmul rate is against a large fp32 product in the same process, and against one in the contestant's own
format. Wall clock counts on a quiet machine; the rate per second of processor time says more on a busy one. The first
step is not timed for anybody. `loss` is the mean over 24 other rows afterwards, measured by one function for all.
`--results` keeps the runs of several calls in one file; the table is over all of them. TRL needs an interpreter that
has it (`--python`):

    python -m venv /tmp/peers && echo "$PWD/.venv/lib/python3.11/site-packages" > \\
        /tmp/peers/lib/python3.11/site-packages/main.pth
    /tmp/peers/bin/pip install --no-deps trl==1.16.0 datasets==5.2.0 pyarrow pandas dill multiprocess xxhash fsspec
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from scripts.bench.train_peers import (
    RANK,
    RATE,
    ROWS_A_STEP,
    Timed,
    hf_grouped,
    hf_lora,
    hf_padded,
    hf_padded_bf16,
    trl_bfd,
    trl_bfd_bf16,
    trl_wrapped,
)
from trainer.config.dials import Dials
from trainer.config.precision import compute_dtype, faster_on_cpu
from trainer.engine import Engine
from trainer.models.lora import add_adapter
from trainer.packing import Row, pack

LONGEST = 1010
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    "TOKENIZERS_PARALLELISM": "false",
}
SHAPES = {
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "vocab_size": 4096, "intermediate_size": 768},
    "m30": {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 8192, "intermediate_size": 1536},
}


def make_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    heads = SHAPES[name]["hidden_size"] // 64
    config = Qwen3Config(
        **SHAPES[name],
        num_attention_heads=heads * 2,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def make_rows(count: int, vocabulary: int, seed: int) -> list[Row]:
    """Lengths like a chat corpus's (lognormal: median 86, p90 270, p99 about 690); tokens with Zipf's frequencies."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(86), 0.893, count), 20, LONGEST).astype(int)
    return [
        Row(np.minimum(random.zipf(1.3, length), vocabulary - 1).astype(np.int32), np.ones(length, np.bool_))
        for length in lengths
    ]


def dials(tokens: int = 4096, dtype: torch.dtype = torch.float32) -> Dials:
    return Dials("cpu", dtype, RATE, "constant", 0, 0.0, 1.0, ROWS_A_STEP, tokens, tokens, False)


def ours(
    model: PreTrainedModel, rows: list[Row], dtype: torch.dtype | None = None, rows_a_step: int = ROWS_A_STEP
) -> Timed:
    """Args: dtype: None: what `fp_precision: auto` takes here."""
    engine = Engine(model, dials(dtype=dtype or auto_dtype(model)))
    timed = Timed()
    for start in range(0, len(rows), rows_a_step):
        began, cpu_began = time.perf_counter(), time.process_time()
        result = engine.step(pack(rows[start : start + rows_a_step], 4096), RATE)
        if start:
            timed.tokens += result.tokens
            timed.seconds += time.perf_counter() - began
            timed.cpu_seconds += time.process_time() - cpu_began
    return timed


def auto_dtype(model: Any) -> torch.dtype:
    return compute_dtype("auto", "cpu", faster_on_cpu(model.config.hidden_size))


def ours_2048(model: PreTrainedModel, rows: list[Row]) -> Timed:
    """As many rows a step as fill TRL's two packs of 1,024 tokens."""
    return ours(model, rows, rows_a_step=18)


def ours_fp32(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return ours(model, rows, torch.float32)


def ours_lora(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return ours(adapted(model), rows)


def ours_lora_fp32(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return ours(adapted(model), rows, torch.float32)


def adapted(model: PreTrainedModel) -> Any:
    return add_adapter(model, rank=RANK, seed=0, base_folder=Path("base"))


CONTESTANTS: dict[str, Callable[[PreTrainedModel, list[Row]], Timed]] = {
    "hf_padded": hf_padded,
    "hf_grouped": hf_grouped,
    "trl_bfd": trl_bfd,
    "trl_wrapped": trl_wrapped,
    "ours": ours,
    "ours_2048": ours_2048,
    "ours_fp32": ours_fp32,
    "hf_lora": hf_lora,
    "ours_lora": ours_lora,
}
EXTRAS = {"hf_padded_bf16": hf_padded_bf16, "trl_bfd_bf16": trl_bfd_bf16, "ours_lora_fp32": ours_lora_fp32}
IN_AUTO = ("ours", "ours_2048", "ours_lora")
RATIOS = [  # ours, theirs, what is aimed at
    ("ours", "hf_padded", 3.0),
    ("ours_2048", "trl_bfd", 2.2),
    ("ours_2048", "trl_wrapped", 1.5),
    ("ours_lora", "hf_lora", 3.0),
    ("ours_fp32", "hf_padded", 3.0),
]


def matmul_gflops(dtype: torch.dtype) -> float:
    """The best of some large products, in GFLOP a second of wall clock."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best / 1e9


def flop_per_token(model: PreTrainedModel, rows: list[Row]) -> float:
    """6 FLOP a weight in a matrix product, and 12 x layers x width x mean distance for attention (PaLM, app. B)."""
    config = model.config
    weights = sum(p.numel() for p in model.parameters())
    lengths = np.array([len(row.ids) for row in rows])
    distance = float((lengths**2).sum() / lengths.sum() / 2)
    return 6.0 * weights + 12.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * distance


def mean_loss(model: Any, rows: list[Row]) -> float:
    """By the model's own eager attention, one row at a time: the same for every contestant."""
    model.eval()
    model.config._attn_implementation = "eager"
    total = tokens = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            total += model(input_ids=ids, labels=ids).loss.item() * (len(row.ids) - 1)
            tokens += len(row.ids) - 1
    return total / tokens


def run_one(name: str, model_name: str, count: int) -> dict[str, float]:
    """Train as one contestant, in this process."""
    model = make_model(model_name)
    rows = make_rows(count, model.config.vocab_size, seed=0)
    flop = flop_per_token(model, rows)
    own = auto_dtype(model) if name in IN_AUTO else torch.bfloat16 if "bf16" in name else torch.float32
    before = {dtype: matmul_gflops(dtype) for dtype in (torch.float32, own)}
    timed = (CONTESTANTS | EXTRAS)[name](model, rows)
    probe = {dtype: max(rate, matmul_gflops(dtype)) for dtype, rate in before.items()}
    done = timed.tokens / timed.seconds * flop / 1e9
    return {
        "tokens_per_s": timed.tokens / timed.seconds,
        "tokens_per_cpu_s": timed.tokens / timed.cpu_seconds,
        "share_of_fp32": done / probe[torch.float32],
        "share_of_own": done / probe[own],
        "loss": mean_loss(model, make_rows(24, model.config.vocab_size, seed=1)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def in_process_of_its_own(name: str, options: argparse.Namespace) -> dict[str, float] | None:
    argv = [options.python, "-m", "scripts.bench.train", "--one", name, "--model", options.model]
    argv += ["--rows", str(options.rows), "--threads", str(options.threads)]
    done = subprocess.run(argv, env={**ENVIRONMENT, **os.environ}, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Medians, every contestant against the padded Trainer, and the ratios aimed at."""
    median = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0] if key != "name"}
        for name, runs in found.items()
        if runs
    }
    lines = [
        "| contestant | tokens/s (rounds) | x hf_padded | share of fp32 matmul | of own format | tokens a CPU-s "
        "| loss after | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = median.get("hf_padded", {}).get("tokens_per_s")
    for name, row in median.items():
        rounds = ", ".join(f"{one['tokens_per_s']:.0f}" for one in found[name])
        times = f"{row['tokens_per_s'] / base:.2f}" if base else "-"
        lines.append(
            f"| {name} | {row['tokens_per_s']:.0f} ({rounds}) | {times} | {row['share_of_fp32']:.2f} | "
            f"{row['share_of_own']:.2f} | {row['tokens_per_cpu_s']:.0f} | {row['loss']:.3f} | {row['peak_mb']:.0f} |"
        )
    for ahead, behind, wanted in RATIOS:
        if ahead in median and behind in median:
            wall, cpu = (median[ahead][key] / median[behind][key] for key in ("tokens_per_s", "tokens_per_cpu_s"))
            lines.append(f"{ahead} / {behind} = {wall:.2f} (asked for {wanted}), {cpu:.2f} a CPU-second")
    return "\n".join(lines)


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=[*CONTESTANTS, *EXTRAS], default=list(CONTESTANTS))
    parser.add_argument("--one", choices=[*CONTESTANTS, *EXTRAS], help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help="JSON lines of every run; those of earlier calls count as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs: list[dict[str, Any]] = []
    if options.results and options.results.exists():
        runs = [json.loads(line) for line in options.results.read_text().splitlines()]
    if options.one:
        print(json.dumps(run_one(options.one, options.model, options.rows)))
        return 0
    kept = options.results or Path(os.devnull)
    for _ in range(options.rounds):
        for name in options.only:
            if (result := in_process_of_its_own(name, options)) is not None:
                runs.append({"name": name, **result})
                with kept.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
                print(f"{name}: {result['tokens_per_s']:.0f} tokens/s", flush=True)
    found: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        found.setdefault(run["name"], []).append(run)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
