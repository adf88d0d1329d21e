"""Two real runs for the reader of learning curves: `python -m scripts.bench.curves GSM8K_DIR OUT_DIR`.

overfitted: the embedded model, 64 rows of GSM8K, 24 times over. steady: 1,500 different additions in circled digits,
twice. Every committed checkpoint is scored on 100 rows that were never trained; the curves go to OUT_DIR/<name>.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curriculum.generators.binary import draw
from monitoring.reports.curves import read_curve
from monitoring.reports.records import steps
from scripts.reliability.training_farm import TrainingFarm, chat
from trainer.evaluate.scoring import load_scorer

HELD_OUT = 100
Rows = Sequence[dict[str, Any]]


def run(train: Rows, held_out: Rows, *, epochs: int, batch: int, every: int) -> dict[str, Any]:
    """Train and score; returns {"train": [(step, loss)], "held_out": [(step, loss)]}."""
    with tempfile.TemporaryDirectory() as folder:
        farm = TrainingFarm(
            Path(folder) / "root",
            hyperparams={"epochs": epochs, "batch_size": batch, "learning_rate": 0.003},
            trainer={"checkpoint_every_steps": every, "warmup_steps": 10},
        )
        farm.drop(train)
        farm.train()
        points = []
        for checkpoint in farm.catalogue.committed():
            scored = load_scorer(checkpoint.folder, checkpoint.folder, device="cpu", threads=1).losses(held_out)
            points.append((checkpoint.step, sum(nll for nll, _ in scored) / sum(count for _, count in scored)))
        return {"train": [(one["step"], one["loss"]) for one in steps(farm.workspace, "main")], "held_out": points}


def main() -> int:
    """Make both runs and say what they look like."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()[: 64 + HELD_OUT]
    problems = [chat(row["question"], row["answer"]) for row in map(json.loads, lines)]
    sums = [
        {"messages": [p.question, {"role": "assistant", "content": p.answer}]}
        for p in draw("add", range(1, 256), range(1, 256), count=1500 + HELD_OUT, seed=0)
    ]
    plans = {
        "overfitted": (problems[:64], problems[64:], {"epochs": 24, "batch": 8, "every": 16}),
        "steady": (sums[:1500], sums[1500:], {"epochs": 2, "batch": 16, "every": 16}),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, (train, held_out, dials) in plans.items():
        began = time.monotonic()
        curves = run(train, held_out, **dials)
        finding = read_curve(curves["train"], curves["held_out"])
        (out / f"{name}.json").write_text(json.dumps(curves) + "\n")
        print(
            f"{name}: {finding.kind} in {time.monotonic() - began:.0f} s: {finding.evidence}. {finding.recommendation}"
        )
        print("  held out: " + ", ".join(f"{step} {loss:.3f}" for step, loss in curves["held_out"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
