"""All of GSM8K through the whole chain with the embedded model, and what was seen, as Markdown for docs/log.md.

Reads    DATA_DIR/train.jsonl (7,473 question/answer rows)      Writes   a root below demo/, the report on stdout
Units    seconds, tokens, losses in nats a token

A model of 0.23 M weights cannot learn to calculate; what is tried here is the road, on real text.
"""

import json
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any  # verdicts are JSON

from scripts.farm import Farm

FILE = "gsm8k.jsonl"
SIDECAR = {"spec": "prompt_completion_v1", "columns": {"prompt": "question", "completion": "answer"}}
SETTINGS: dict[str, Any] = {
    "hyperparams": {"epochs": 1, "learning_rate": 0.003, "batch_size": 32},
    "trainer": {"schedule": "decay"},
}
CURVE_POINTS = 16


def main() -> int:
    """Run it; exit code 0 when the file was trained, judged and served."""
    data = Path(sys.argv[1]) / "train.jsonl"
    root = Path.cwd() / "demo" / datetime.now(UTC).strftime("gsm8k-%Y%m%dT%H%M%SZ")
    farm = Farm(root, SETTINGS)
    times: dict[str, float] = {}
    try:
        return _run(farm, data, times)
    finally:
        farm.stop()


def _run(farm: Farm, data: Path, times: dict[str, float]) -> int:
    farm.start()
    began = time.monotonic()
    base = farm.wait(farm.ready, "the base answers", 180)
    times["`up` to the base answering"] = time.monotonic() - began
    inbox = farm.workspace.inbox
    (inbox / f"{FILE}.meta.json").write_text(json.dumps(SIDECAR))
    shutil.copyfile(data, inbox / f"{FILE}.part")
    (inbox / f"{FILE}.part").rename(inbox / FILE)
    dropped = time.monotonic()
    farm.wait(lambda: FILE in farm.verdicts(), "the claim", 120)
    farm.wait(lambda: farm.verdicts()[FILE]["state"] != "queued", "the gates", 600)
    farm.wait(lambda: _step_taken(farm) or _ended(farm), "the first step", 600)
    times["drop to first optimizer step (settling included)"] = time.monotonic() - dropped
    farm.wait(lambda: _ended(farm), "the last step", 3600)
    committed = time.monotonic()
    times["drop to committed checkpoint"] = committed - dropped
    verdict = farm.verdicts()[FILE]
    if verdict["state"] == "done":
        farm.wait(lambda: _decision(farm, verdict["checkpoint"]), "the judge's decision", 600)
        times["commit to the judge's decision"] = time.monotonic() - committed
        if _decision(farm, verdict["checkpoint"]).get("decision") in ("promote", "no_baseline"):
            farm.wait(lambda: farm.ready() == verdict["checkpoint"], "the deployment", 300)
            times["commit to served"] = time.monotonic() - committed
            farm.wait(lambda: farm.verdicts()[FILE]["served"], "the verdict names it", 60)
    _report(farm, times, base)
    return 0 if farm.ready() == verdict["checkpoint"] else 1


def _ended(farm: Farm) -> bool:
    return farm.verdicts()[FILE]["state"] in ("done", "failed", "held", "rejected")


def _step_taken(farm: Farm) -> bool:
    return bool(farm.workspace.metrics_file("main").exists())


def _decision(farm: Farm, checkpoint: str) -> dict[str, Any]:
    candidates = farm.status("leaderboard").get("candidates") or []
    return next((entry for entry in candidates if entry["id"] == checkpoint), {})


def _report(farm: Farm, times: dict[str, float], base: str) -> None:
    verdict = farm.verdicts()[FILE]
    print("\n### Verdict\n")
    print("```json\n" + json.dumps(verdict, ensure_ascii=False, indent=1) + "\n```")
    print("\n### Times\n\n| what | s |\n|---|---|")
    for what, seconds in times.items():
        print(f"| {what} | {seconds:.1f} |")
    _curve(farm)
    print("\n### The judge\n\n```json")
    print(json.dumps(_decision(farm, verdict["checkpoint"]), ensure_ascii=False, indent=1) + "\n```")
    _answers(farm, base)
    verified = farm.facts("verify", expect=(0, 5))
    print(f"\n`dropforge verify`: ok {verified['ok']}, problems {verified['problems']}")


def _curve(farm: Farm) -> None:
    lines = farm.workspace.metrics_file("main").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    width = max(1, len(steps) // CURVE_POINTS)
    print(f"\n### Loss curve ({len(steps)} steps, means over {width})\n\n| steps | loss | tokens/s |\n|---|---|---|")
    for first in range(0, len(steps), width):
        part = steps[first : first + width]
        loss = sum(step["loss"] for step in part) / len(part)
        print(f"| {part[0]['step']}-{part[-1]['step']} | {loss:.3f} | {part[-1]['tokens_per_sec']:,.0f} |")


def _answers(farm: Farm, base: str) -> None:
    print(f"\n### Answers of {farm.ready()} (the base was {base})\n")
    for question in ("Tom has 3 apples and buys 5 more. How many apples does he have?", "What is 12 + 30?"):
        answer = farm.ask([{"role": "user", "content": question}], 96)
        print(f"- {question}\n  `{answer.text!r}`")


if __name__ == "__main__":
    sys.exit(main())
