"""lm-evaluation-harness through our /v1/completions, against the same weights scored in process: the same numbers.

    PYTHONPATH=tests python -m scripts.reliability.serve_lm_eval [--suite hard] [--venv DIR]

Reads    config/suites/<suite>/items.jsonl: its items with choices, as lm_eval's own multiple-choice task
Writes   a temporary root, removed at the end; DIR (lm_eval in a venv of its own, made when missing; it borrows torch
         from this one)
Method   three ways to a log-likelihood of every choice: `lm_eval --model local-completions` (HTTP, echo + logprobs),
         `lm_eval --model hf` (in process), and the judge's scorer (in process, through the chat template)
Units    nats
Errors   exit 5 when a choice's log-likelihood differs by more than 1e-4, an accuracy or a greedy flag at all
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from core.atomic import read_json
from core.chat_templates import ChatEncoder
from serving_rig import place, ready_root, running
from trainer.evaluate.scoring import load_scorer

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = "0.4.13"
TOLERANCE_NATS = 1e-4
TASK = """task: dropforge_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{target}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def lm_eval_python(venv: Path) -> Path:
    """The interpreter of a venv that holds lm_eval; made when missing, with our torch behind its own packages."""
    python = venv / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"lm_eval[api]=={VERSION}"], check=True)
    inside = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(inside.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def write_task(folder: Path, suite: str, encoder: ChatEncoder) -> list[dict[str, Any]]:
    """The suite's questions with choices as a local task. Returns the items as written."""
    end = encoder.decode([max(encoder.eos_ids)], skip_special_tokens=False)
    items = []
    for line in (REPOSITORY / "config" / "suites" / suite / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        if len(item.get("choices", ())) > 1:
            asked = item.get("messages") or [{"role": "user", "content": item["prompt"]}]
            choices = [choice + end for choice in item["choices"]]
            target = item["choices"].index(item["expected"])
            items.append({"context": encoder.render(asked, True), "choices": choices, "target": target, "asked": asked})
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in i.items() if k != "asked"}) + "\n" for i in items))
    (folder / "dropforge_choices.yaml").write_text(TASK.format(items=path))
    return items


def run_lm_eval(python: Path, folder: Path, name: str, model: str, arguments: str) -> tuple[dict[str, Any], list[Any]]:
    """Returns lm_eval's own results, and per item [(log-likelihood, greedy)] of its choices."""
    out = folder / name
    argv = [str(python), "-m", "lm_eval", "--model", model, "--model_args", arguments, "--tasks", "dropforge_choices"]
    argv += ["--include_path", str(folder), "--output_path", str(out), "--log_samples", "--batch_size", "1"]
    argv += ["--device", "cpu"]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "OPENAI_API_KEY": "any",
    }
    done = subprocess.run(
        argv, env={**os.environ, **offline, "OPENAI_API_KEY": "any"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"lm_eval ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    (results,) = out.rglob("results_*.json")
    (samples,) = out.rglob("samples_*.jsonl")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    said = [[(float(nats), flag in (True, "True")) for nats, flag in row["filtered_resps"]] for row in rows]
    found: dict[str, Any] = read_json(results)["results"]["dropforge_choices"]
    return found, said


def judged(checkpoint: Path, items: list[dict[str, Any]], end: str) -> list[list[float]]:
    """The judge's log-likelihood of every choice."""
    scorer = load_scorer(checkpoint, checkpoint, device="cpu", threads=1)
    texts = [[choice.removesuffix(end) for choice in item["choices"]] for item in items]
    losses = scorer.choice_losses([item["asked"] for item in items], texts)
    return [[-nll for nll, _ in choices] for choices in losses]


def compare(served: list[Any], inside: list[Any], judge: list[list[float]]) -> dict[str, Any]:
    """Largest differences. lm_eval counts the line break before the answer too, the judge does not: the same amount for
    every choice of an item, so differences between choices are compared there.
    """
    pairs = [(s, i) for one, other in zip(served, inside, strict=True) for s, i in zip(one, other, strict=True)]
    margins = [
        abs((a[0] - first[0]) - (b - wanted[0]))
        for first, one, wanted in zip((row[0] for row in served), served, judge, strict=True)
        for a, b in zip(one, wanted, strict=True)
    ]
    return {
        "items": len(served),
        "choices": len(pairs),
        "largest_difference_to_lm_eval_hf": max(abs(s[0] - i[0]) for s, i in pairs),
        "greedy_flags_differ": sum(s[1] != i[1] for s, i in pairs),
        "largest_difference_to_the_judge": max(margins),
        "best_choice_differs": sum(
            max(range(len(one)), key=lambda n: one[n][0]) != max(range(len(wanted)), key=lambda n: wanted[n])
            for one, wanted in zip(served, judge, strict=True)
        ),
    }


def proof(folder: Path, python: Path, suite: str) -> dict[str, Any]:
    """Serve a checkpoint, score the suite three ways. Returns what was compared."""
    workspace, (checkpoint,) = ready_root(folder / "root", (0,), scale=4.0)
    encoder = ChatEncoder.from_folder(checkpoint.folder)
    items = write_task(folder, suite, encoder)
    end = encoder.decode([max(encoder.eos_ids)], skip_special_tokens=False)
    with running(workspace) as server:
        server.post("/admin/reload", place(checkpoint, workspace.root / "served")).raise_for_status()
        arguments = f"model=dropforge,base_url={server.url}/v1/completions,num_concurrent=4,max_retries=1"
        arguments += f",tokenizer_backend=huggingface,tokenizer={checkpoint.folder},max_length=2048"
        served, answers = run_lm_eval(python, folder, "served", "local-completions", arguments)
    hf = f"pretrained={checkpoint.folder},dtype=float32"
    inside, known = run_lm_eval(python, folder, "inside", "hf", hf)
    doc = compare(answers, known, judged(checkpoint.folder, items, end))
    for name in ("acc,none", "acc_norm,none"):
        doc[name] = {"served": served[name], "in process": inside[name]}
    return doc


def main() -> int:
    """Run the comparison. Returns 0, or 5 when the numbers differ."""
    parser = argparse.ArgumentParser(description="lm_eval through HTTP against in-process scoring.")
    parser.add_argument("--suite", default="hard")
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "dropforge" / "lm-eval")
    options = parser.parse_args()
    python = lm_eval_python(options.venv)
    with tempfile.TemporaryDirectory() as folder:
        doc = proof(Path(folder), python, options.suite)
    same = doc["greedy_flags_differ"] == doc["best_choice_differs"] == 0
    same &= all(doc[name]["served"] == doc[name]["in process"] for name in ("acc,none", "acc_norm,none"))
    same &= max(doc["largest_difference_to_lm_eval_hf"], doc["largest_difference_to_the_judge"]) <= TOLERANCE_NATS
    print(json.dumps({**doc, "same": same}, indent=1))
    return 0 if same else 5


if __name__ == "__main__":
    sys.exit(main())
