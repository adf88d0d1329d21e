"""What a judgement costs, and what it costs the trainer beside it.

    python -m scripts.bench.judge [--model tiny|small|m30] [--threads N ...]     seconds for the shipped guard suites
    python -m scripts.bench.judge --beside [--model small] [--seconds 12]        training speed while a judge runs

The model has random weights and the embedded model's tokenizer, and never ends an answer by itself: the dearest case.
Each line is a process of its own; `--beside` alternates phases without and with a judge next to one trainer process on
all cores, and gives the wall-clock speed of both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.paths import builtin_config

JUDGES = (None, (1, 0), (1, 10), (2, 10), (2, 19))  # (threads, nice); None: no judge
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


def make_folder(folder: Path, model: str) -> None:
    """The embedded model, or its tokenizer with another random model."""
    from scripts.bench.train import make_model
    from trainer.models.tiny import make_tiny

    make_tiny(folder, 0)
    if model != "tiny":
        (folder / "model.safetensors").unlink()
        make_model(model).save_pretrained(folder)


def score(folder: Path, threads: int) -> dict[str, float]:
    """Seconds for the three guards, one checkpoint, loading apart."""
    from trainer.evaluate.scorer import score_shard
    from trainer.evaluate.scoring import load_scorer
    from trainer.evaluate.suites import load_suite

    scorer = load_scorer(folder, folder, device="cpu", threads=threads)
    began, cpu_began = time.perf_counter(), time.process_time()
    for name in ("easy", "medium", "hard"):
        suite = load_suite(builtin_config() / "suites" / name)
        for shard in suite.shards:
            score_shard(scorer, shard, suite.max_new_tokens, by_loss=False)
            print(json.dumps({"items": len(shard.items)}), flush=True)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu_began}


def train(model: str) -> None:
    """Train for ever, and say after each step how many tokens it had."""
    from scripts.bench.train import RATE, ROWS_A_STEP, dials, make_model, make_rows
    from trainer.engine import Engine
    from trainer.packing import pack

    network = make_model("small" if model == "tiny" else model)
    rows = make_rows(512, network.config.vocab_size, 0)
    engine = Engine(network, dials())
    while True:
        for start in range(0, len(rows), ROWS_A_STEP):
            print(
                json.dumps({"items": engine.step(pack(rows[start : start + ROWS_A_STEP], 4096), RATE).tokens}),
                flush=True,
            )


def judge_forever(folder: Path, threads: int, nice: int) -> None:
    os.nice(nice)
    while True:
        score(folder, threads)


class Worker:
    """A process that prints what it has done, read from its output file."""

    def __init__(self, *argv: str) -> None:
        handle, name = tempfile.mkstemp()
        self._out = Path(name)
        command = [sys.executable, "-m", "scripts.bench.judge", *argv]
        self.process = subprocess.Popen(command, stdout=handle, env={**os.environ, **_ENVIRONMENT})
        os.close(handle)

    def done(self) -> int:
        """Items so far: tokens of a trainer, answers of a judge."""
        lines = self._out.read_text().splitlines()
        return sum(json.loads(line).get("items", 0) for line in lines if line.endswith("}"))

    def warm(self) -> None:
        """Wait for the first items. Raises RuntimeError when it ends before."""
        while not self.done():
            if self.process.poll() is not None:
                raise RuntimeError(f"it ended with {self.process.returncode}")
            time.sleep(0.1)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._out.unlink()


def beside(folder: Path, model: str, seconds: float) -> None:
    trainer = Worker("--as", "trainer", "--model", model)
    trainer.warm()
    alone = []
    print(f"{'judge':>22} {'trainer tokens/s':>17} {'judge items/s':>14}")
    for plan in (*JUDGES, None):
        threads, nice = plan or (0, 0)
        judge = (
            Worker("--as", "judge", "--folder", str(folder), "--threads", str(threads), "--nice", str(nice))
            if plan
            else None
        )
        if judge is not None:
            judge.warm()
        began, tokens, items = time.monotonic(), trainer.done(), judge.done() if judge else 0
        time.sleep(seconds)
        took = time.monotonic() - began
        speed, pace = (trainer.done() - tokens) / took, ((judge.done() if judge else 0) - items) / took
        alone += [speed] if plan is None else []
        print(f"{f'{threads} threads, nice {nice}' if plan else 'none':>22} {speed:17.0f} {pace:14.2f}", flush=True)
        if judge is not None:
            judge.end()
    trainer.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m30")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--as", dest="role", choices=("trainer", "judge", "score"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nice", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.role == "trainer":
        train(asked.model)
    elif asked.role == "judge":
        judge_forever(asked.folder, asked.threads[0], asked.nice)
    elif asked.role == "score":
        print(json.dumps(score(asked.folder, asked.threads[0])))
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            make_folder(folder, asked.model)
            if asked.beside:
                beside(folder, asked.model, asked.seconds)
            else:
                for threads in asked.threads:
                    found = _in_a_process(folder, threads)
                    print(f"{asked.model}, {threads} threads: {found['seconds']:.1f} s, {found['cpu']:.1f} s of CPU")
    return 0


def _in_a_process(folder: Path, threads: int) -> dict[str, float]:
    argv = [
        sys.executable,
        "-m",
        "scripts.bench.judge",
        "--as",
        "score",
        "--folder",
        str(folder),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(argv, env={**os.environ, **_ENVIRONMENT}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
