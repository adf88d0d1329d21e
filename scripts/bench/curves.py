"""Two real runs for the reader of learning curves: `python -m scripts.bench.curves [GSM8K_DIR] [OUT_DIR]`.

overfitted: 64 rows of GSM8K, 60 times over; as many of the same file are held out. steady: 1,500 different additions
in circled digits, 6 times over. Each is dropped into a root of its own under `dropforge up` with the embedded model;
what `dropforge report` says of it is printed, and OUT_DIR gets its metrics.jsonl and the report.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # rows and reports are JSON documents

from curriculum.generators.binary import draw
from scripts.farm import Farm

Rows = Sequence[dict[str, Any]]
RATE = 0.003
ROWS = 138  # by the hash of each row 74 of them are held out
_DEADLINE_S = 500.0


def overfitted(data: Path) -> tuple[Rows, dict[str, Any]]:
    """Rows of which half are held out, so many that 64 are trained."""
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    rows = [_chat({"role": "user", "content": row["question"]}, row["answer"]) for row in map(json.loads, lines)]
    return rows, {"hyperparams": {"epochs": 60, "batch_size": 8}, "trainer": {"held_out": 0.5}}


def steady() -> tuple[Rows, dict[str, Any]]:
    """1,500 rows, of which 5 % are held out."""
    problems = draw("add", range(1, 256), range(1, 256), count=1500, seed=0)
    rows = [_chat(problem.question, problem.answer) for problem in problems]
    return rows, {"hyperparams": {"epochs": 6, "batch_size": 16}, "trainer": {"held_out": 0.05}}


def _chat(question: dict[str, str], answer: str) -> dict[str, Any]:
    return {"messages": [question, {"role": "assistant", "content": answer}]}


def run(name: str, rows: Rows, dials: dict[str, dict[str, Any]], out: Path) -> None:
    """Drop the rows into a fresh root, wait for the verdict, and write down what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        hyperparams = {"learning_rate": RATE, **dials["hyperparams"]}
        farm = Farm(Path(folder) / "root", {"hyperparams": hyperparams, "trainer": {"threads": 1, **dials["trainer"]}})
        farm.start()
        try:
            part = farm.workspace.inbox / f"{name}.jsonl.part"
            part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            part.rename(part.with_suffix(""))
            verdict = farm.wait(lambda: _ended(farm, f"{name}.jsonl"), f"{name} is trained", _DEADLINE_S)
        finally:
            farm.stop()
        trained = f"{verdict['rows_train']} rows trained, {verdict['rows_held_out']} held out"
        print(f"{name}: {verdict['state']}, {trained}, {verdict['training']['seconds']:.0f} s")
        metrics = farm.workspace.metrics_file("main").read_text(encoding="utf-8")
        (out / f"{name}.jsonl").write_text(metrics, encoding="utf-8")
        for one in farm.facts("report", "--html", str((out / f"{name}.html").absolute()))["jobs"]:
            print(
                f"  {one['kind']}: {one['evidence']}\n  rule: {one['rule']}\n  recommendation: {one['recommendation']}"
            )
        points = [one for one in map(json.loads, metrics.splitlines()) if "validation_loss" in one]
        print("  held out: " + ", ".join(f"{one['step']} {one['validation_loss']:.3f}" for one in points), flush=True)


def _ended(farm: Farm, file: str) -> dict[str, Any] | None:
    verdict = farm.verdicts().get(file)
    return verdict if verdict and verdict["state"] not in ("queued", "active") else None


def main() -> int:
    """Make both runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/gsm8k"))
    parser.add_argument("out", type=Path, nargs="?", default=Path("build/curves"))
    asked = parser.parse_args()
    data, out = asked.data, asked.out
    out.mkdir(parents=True, exist_ok=True)
    for name, (rows, dials) in {"overfitted": overfitted(data), "steady": steady()}.items():
        run(name, rows, dials, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
