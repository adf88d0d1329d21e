"""Rows that the judge scored with a checkpoint, for the server's gate (judge -> publisher -> inference server).

Reads    checkpoints/<run>/evaluations/<id>/samples.jsonl: {"row", "nll" (summed), "tokens"} a line, after a head
Units    losses in nats per trained token
Errors   none: a checkpoint that was never judged has no canaries, and the gate then looks at plausibility only
"""

import json
import math
from pathlib import Path
from typing import Any  # samples are JSON objects of the judge

MAX_CANARIES = 8
_MOST_CHARACTERS = 20_000


def canaries_of(evaluation_dir: Path) -> list[dict[str, Any]]:
    """Up to eight `{"row", "loss"}` for POST /admin/reload."""
    path = evaluation_dir / "samples.jsonl"
    found: list[dict[str, Any]] = []
    if not path.is_file():
        return found
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            canary = _canary(line)
            if canary is not None:
                found.append(canary)
            if len(found) == MAX_CANARIES:
                break
    return found


def _canary(line: str) -> dict[str, Any] | None:
    try:
        sample = json.loads(line)
    except ValueError:
        return None
    if not isinstance(sample, dict):
        return None
    nll, tokens, whole = sample.get("nll"), sample.get("tokens"), sample.get("row")
    if not isinstance(nll, float | int) or not isinstance(tokens, int) or tokens < 1 or not isinstance(whole, dict):
        return None
    row = {kind: whole[kind] for kind in ("messages", "text") if whole.get(kind)}
    if len(row) != 1 or not math.isfinite(nll) or len(json.dumps(row)) > _MOST_CHARACTERS:
        return None
    return {"row": row, "loss": nll / tokens, "tokens": tokens}
