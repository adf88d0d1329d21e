"""Useful (non-padding) training tokens per second of processor time: our packed loop against transformers' Trainer
and TRL, interleaved.

    python -m scripts.bench.train [--model small|m30] [--rows 256] [--rounds 3] [--python PYTHON_WITH_TRL] [--only
    NAME ...]

Every contestant trains the same random rows with the same objective (all tokens), AdamW at 1e-3, fp32, 8 rows a step,
from the same weights, in a process of its own with the same environment; rounds are interleaved and the median is
printed, with the share of a matmul probe taken in the same process. Processor time, since other work on the machine
bends the wall clock. The first step is not timed for anybody. `loss` is the mean over 64 other
rows afterwards, measured by one function for all. TRL needs an interpreter that has it (`--python`):

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from trainer import packing
from trainer.config.dials import Dials
from trainer.engine import Engine
from trainer.models.lora import add_adapter
from trainer.models.tiny import tiny_config
from trainer.packing import Row, pack

ROWS_A_STEP = 8
RATE = 1e-3
LONGEST = 1010
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "OMP_WAIT_POLICY": "passive",
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


@dataclass
class Timed:
    """Tokens, seconds and seconds of processor time of all steps but the first."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def dials(tokens: int = 4096, dtype: torch.dtype = torch.float32) -> Dials:
    return Dials("cpu", dtype, RATE, "constant", 0, 0.0, 1.0, ROWS_A_STEP, tokens, tokens, False)


def ours(
    model: PreTrainedModel, rows: list[Row], dtype: torch.dtype = torch.float32, rows_a_step: int = ROWS_A_STEP
) -> Timed:
    engine = Engine(model, dials(dtype=dtype))
    timed = Timed()
    for start in range(0, len(rows), rows_a_step):
        began, cpu_began = time.perf_counter(), time.process_time()
        result = engine.step(pack(rows[start : start + rows_a_step], 4096), RATE)
        if start:
            timed.tokens += result.tokens
            timed.seconds += time.perf_counter() - began
            timed.cpu_seconds += time.process_time() - cpu_began
    return timed


def ours_2048(model: PreTrainedModel, rows: list[Row]) -> Timed:
    """As many rows a step as fill TRL's two packs of 1,024 tokens."""
    return ours(model, rows, rows_a_step=18)


def ours_bf16(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return ours(model, rows, torch.bfloat16)


def ours_lora(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return ours(_adapted(model), rows)


def _adapted(model: PreTrainedModel) -> Any:
    return add_adapter(model, rank=16, seed=0, base_folder=Path("base"))


class StepClock(TrainerCallback):
    """Times the steps of a Trainer from the end of the first to the end of the last."""

    def __init__(self) -> None:
        self.first = self.last = self.cpu_first = self.cpu_last = 0.0
        self.tokens_first = self.tokens_last = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last, self.cpu_last = time.perf_counter(), time.process_time()
        self.tokens_last = state.num_input_tokens_seen
        if not self.first:
            self.first, self.cpu_first, self.tokens_first = self.last, self.cpu_last, self.tokens_last

    def timed(self, tokens: int | None = None) -> Timed:
        """Args: tokens: useful ones; None counts what the Trainer saw, which is right where nothing is padded."""
        counted = self.tokens_last - self.tokens_first if tokens is None else tokens
        return Timed(counted, self.last - self.first, self.cpu_last - self.cpu_first)


def trainer_arguments(**more: Any) -> dict[str, Any]:
    return {
        "output_dir": "/tmp/bench-train",  # noqa: S108  # nothing is written there
        "per_device_train_batch_size": ROWS_A_STEP,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "save_strategy": "no",
        "report_to": [],
        "logging_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        **more,
    }


def examples_of(rows: list[Row]) -> list[dict[str, Any]]:
    return [{"input_ids": row.ids.tolist(), "labels": row.ids.tolist(), "length": len(row.ids)} for row in rows]


def pad(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(e["input_ids"]) for e in examples)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([e[key] + [value] * (longest - len(e[key])) for e in examples])

    mask = [[1] * len(e["input_ids"]) + [0] * (longest - len(e["input_ids"])) for e in examples]
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)}


def hf_padded(model: Any, rows: list[Row], **more: Any) -> Timed:
    clock = StepClock()
    arguments = TrainingArguments(**trainer_arguments(remove_unused_columns=False, **more))
    trainer = Trainer(model, arguments, pad, examples_of(rows), callbacks=[clock])
    if not more:
        trainer._get_train_sampler = lambda *_: None  # type: ignore[method-assign]  # the rows' own order, as ours
    trainer.train()
    return clock.timed(sum(len(row.ids) for row in rows[ROWS_A_STEP:]))


def hf_grouped(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return hf_padded(model, rows, train_sampling_strategy="group_by_length", length_column_name="length")


def hf_lora(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return hf_padded(_adapted(model), rows)


def _trl(model: PreTrainedModel, rows: list[Row], strategy: str) -> Timed:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock = StepClock()
    config = SFTConfig(
        **trainer_arguments(per_device_train_batch_size=2, include_num_input_tokens_seen="all"),
        packing=True,
        packing_strategy=strategy,
        max_length=1024,
        gradient_checkpointing=False,
        padding_free=strategy == "bfd",
        dataset_num_proc=None,
    )
    data = Dataset.from_list([{"input_ids": row.ids.tolist()} for row in rows])
    trainer = SFTTrainer(model, config, train_dataset=data, processing_class=_any_tokenizer(), callbacks=[clock])
    trainer.train()
    return clock.timed()


def _any_tokenizer() -> Any:
    """SFTTrainer wants one, though the rows are token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106  # a token of text
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")  # noqa: S106


def trl_bfd(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return _trl(model, rows, "bfd")


def trl_wrapped(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return _trl(model, rows, "wrapped")


CONTESTANTS: dict[str, Callable[[PreTrainedModel, list[Row]], Timed]] = {
    "hf_padded": hf_padded,
    "hf_grouped": hf_grouped,
    "trl_bfd": trl_bfd,
    "trl_wrapped": trl_wrapped,
    "ours": ours,
    "ours_2048": ours_2048,
    "ours_bf16": ours_bf16,
    "hf_lora": hf_lora,
    "ours_lora": ours_lora,
}


def matmul_gflops() -> float:
    """The best of some large fp32 products, in GFLOP a second of processor time."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(8):
        began = time.process_time()
        a @ b
        best = min(best, time.process_time() - began)
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
    before = matmul_gflops()
    timed = CONTESTANTS[name](model, rows)
    probe = max(before, matmul_gflops())
    cpu_rate = timed.tokens / timed.cpu_seconds
    return {
        "tokens_per_s": timed.tokens / timed.seconds,
        "tokens_per_cpu_s": cpu_rate,
        "share_of_matmul": cpu_rate * flop / probe / 1e9,
        "loss": mean_loss(model, make_rows(64, model.config.vocab_size, seed=1)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def in_process_of_its_own(name: str, options: argparse.Namespace) -> dict[str, float] | None:
    argv = [
        options.python,
        "-m",
        "scripts.bench.train",
        "--one",
        name,
        "--model",
        options.model,
        "--rows",
        str(options.rows),
    ]
    done = subprocess.run(argv, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Medians, and every contestant against the padded Trainer."""
    median = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for name, runs in found.items()
        if runs
    }
    base = median.get("hf_padded", {}).get("tokens_per_cpu_s")
    lines = [
        "| contestant | tokens per CPU-s (rounds) | x hf_padded | share of matmul | tokens/s | loss after | peak MB |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in median.items():
        rounds = ", ".join(f"{one['tokens_per_cpu_s']:.0f}" for one in found[name])
        times = f"{row['tokens_per_cpu_s'] / base:.2f}" if base else "-"
        lines.append(
            f"| {name} | {row['tokens_per_cpu_s']:.0f} ({rounds}) | {times} | {row['share_of_matmul']:.2f} | "
            f"{row['tokens_per_s']:.0f} | {row['loss']:.4f} | {row['peak_mb']:.0f} |"
        )
    pairs = [
        ("ours", "hf_padded"),
        ("ours", "trl_bfd"),
        ("ours", "trl_wrapped"),
        ("ours_bf16", "ours"),
        ("ours_lora", "hf_lora"),
    ]
    for ahead, behind in pairs:
        if ahead in median and behind in median:
            ratio = median[ahead]["tokens_per_cpu_s"] / median[behind]["tokens_per_cpu_s"]
            lines.append(f"{ahead} / {behind} = {ratio:.2f}")
    return "\n".join(lines)


def sweep_grouping(model_name: str, rounds: int) -> None:
    """Time our loop with other limits for attending together: `trainer.packing`'s two constants."""
    longest_rows = 56 if model_name == "tiny" else LONGEST
    model = Qwen3ForCausalLM(tiny_config()) if model_name == "tiny" else make_model(model_name)
    rows = [Row(row.ids[:longest_rows], row.mask[:longest_rows]) for row in make_rows(256, model.config.vocab_size, 0)]
    settings = [(1, 1.0), (64, 0.75), (192, 0.5), (192, 0.75), (192, 0.9), (512, 0.75)]
    found: dict[tuple[int, float], list[float]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for long, share in settings:
            packing.LONG_DOCUMENT_TOKENS, packing.SHORTEST_SHARE = long, share
            timed = ours(model, rows, rows_a_step=64)
            found[long, share].append(timed.tokens / timed.cpu_seconds)
    for (long, share), rates in found.items():
        what = f"alone from {long} tokens, together down to {share:.0%}"
        print(f"{model_name}: {what}: {statistics.median(rates):.0f} tokens per CPU-s")


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SHAPES, "tiny"], default="small")
    parser.add_argument("--sweep", action="store_true", help="time the limits of attending together instead")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.sweep:
        sweep_grouping(options.model, options.rounds)
        return 0
    if options.one:
        print(json.dumps(run_one(options.one, options.model, options.rows)))
        return 0
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    for _ in range(options.rounds):
        for name in options.only:
            if (result := in_process_of_its_own(name, options)) is not None:
                found[name].append(result)
                print(f"{name}: {result['tokens_per_cpu_s']:.0f} tokens per CPU-s", flush=True)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
