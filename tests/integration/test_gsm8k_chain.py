"""Real text nobody here wrote: the first 200 rows of GSM8K, with their own column names, through the whole chain."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from tokenizers import Tokenizer

from farm import Farm

pytestmark = pytest.mark.slow

ROWS = 200
FILE = "gsm8k-200.jsonl"
SIDECAR = {"spec": "prompt_completion_v1", "columns": {"prompt": "question", "completion": "answer"}}


def first_rows(shared_data: Path) -> str:
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(lines[:ROWS])


def served_answer(farm: Farm, question: str) -> requests.Response:
    body: dict[str, Any] = {
        "model": "dropforge",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 12,
        "temperature": 0,
    }
    return requests.post(f"{farm.server}/v1/chat/completions", json=body, timeout=60)


def test_gsm8k_rows_are_checked_trained_judged_and_served(make_farm: Callable[..., Farm], shared_data: Path) -> None:
    text = first_rows(shared_data)
    rows = [json.loads(line) for line in text.splitlines()]
    farm = make_farm(hyperparams={"epochs": 2, "learning_rate": 0.003, "batch_size": 16})
    farm.drop(FILE, text, SIDECAR)
    farm.start()
    farm.wait_until(lambda: farm.ended() == 1, "the verdict", 180)
    (verdict,) = farm.lane("done") or farm.rejected()
    the_verdict_counts_every_row(verdict, text)
    held_out = the_held_out_rows_are_questions_of_the_file(farm, verdict, rows)
    only_answers_are_trained(farm, verdict, rows, held_out)
    the_loss_falls(farm, verdict)

    farm.wait_until(lambda: farm.serving() == verdict["checkpoint"], "the new checkpoint served", 120)
    reply = served_answer(farm, rows[0]["question"])
    assert reply.status_code == 200, reply.text
    assert reply.headers["X-Dropforge-Checkpoint"] == verdict["checkpoint"]
    assert reply.json()["usage"]["completion_tokens"] == 12
    lineage = farm.json("lineage", verdict["checkpoint"])
    assert [entry["sha256"] for entry in lineage["files"]] == [verdict["sha256"]]
    assert farm.json("verify")["ok"]
    assert farm.stop() == 0


def the_verdict_counts_every_row(verdict: dict[str, Any], text: str) -> None:
    assert (verdict["state"], verdict["code"], verdict["spec"]) == ("done", "ok", "prompt_completion_v1"), verdict
    assert verdict["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert verdict["rows"] == ROWS == verdict["rows_train"] + verdict["rows_held_out"]
    assert verdict["training"]["rows_trained"] == 2 * verdict["rows_train"]


def the_held_out_rows_are_questions_of_the_file(
    farm: Farm, verdict: dict[str, Any], rows: list[dict[str, str]]
) -> set[str]:
    """Returns the held-out questions."""
    lines = (
        (farm.workspace.incoming_dir("main") / f"{verdict['job_id']}.jsonl").read_text(encoding="utf-8").splitlines()
    )
    answers = {row["question"]: row["answer"] for row in rows}
    questions = set()
    for line in lines:
        user, assistant = json.loads(line)["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert answers[user["content"]] == assistant["content"]
        questions.add(user["content"])
    assert len(questions) == verdict["rows_held_out"]
    return questions


def only_answers_are_trained(
    farm: Farm, verdict: dict[str, Any], rows: list[dict[str, str]], held_out: set[str]
) -> None:
    """Counted from the raw file with the tokenizer alone: each answer and the end of its turn, and no question."""
    folder = farm.workspace.run_dir("main") / f"checkpoint-{verdict['training']['last_step']}"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    answers = [len(tokenizer.encode(row["answer"]).ids) + 1 for row in rows if row["question"] not in held_out]
    assert verdict["training"]["tokens_trained"] == 2 * sum(answers)


def the_loss_falls(farm: Farm, verdict: dict[str, Any]) -> None:
    lines = farm.workspace.metrics_file("main").read_text().splitlines()
    curve = [json.loads(line)["loss"] for line in lines]
    steps = -(-2 * verdict["rows_train"] // 16)
    assert len(curve) == steps == verdict["training"]["last_step"]
    assert curve[0] > 6.5  # random weights over 1,024 tokens: ln 1024 = 6.93
    assert curve[-1] < curve[0] - 1
