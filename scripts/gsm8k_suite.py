"""GSM8K's test file as a suite: `python -m scripts.gsm8k_suite DATA_DIR ROOT [--items N] [--checkpoint ID]`.

Puts the first N questions of DATA_DIR/test.jsonl into ROOT/config/suites/gsm8k (role `report`: shown, never deciding)
and scores a checkpoint on it, the newest one unless told otherwise. Graded by the number after `####`; the loss is that
of the whole written solution.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from core.atomic import write_bytes, write_json
from core.checkpoints import Catalogue
from core.errors import DropforgeError, NotFoundError
from core.paths import Workspace
from core.settings import load_settings
from trainer.evaluate.__main__ import main as judge

NAME = "gsm8k"


def write_suite(data: Path, folder: Path, items: int) -> int:
    """Write the suite; returns how many items it has. Raises StorageError, or OSError when the data is not there."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:items]]
    lines = [
        json.dumps(
            {"id": f"{NAME}-{n:04}", "prompt": row["question"], "expected": row["answer"], "grader": "numeric"},
            ensure_ascii=False,
        )
        for n, row in enumerate(rows, 1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "items.jsonl", ("\n".join(lines) + "\n").encode())
    suite = {"name": NAME, "version": 1, "metric": "accuracy", "role": "report", "max_new_tokens": 256}
    write_json(folder / "suite.json", suite)
    return len(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the suite and score a checkpoint on it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.gsm8k_suite", description="GSM8K as a suite.")
    parser.add_argument("data", type=Path, help="the folder with test.jsonl")
    parser.add_argument("root", type=Path)
    parser.add_argument("--items", type=int, default=1319, help="how many of its 1,319 questions")
    parser.add_argument("--checkpoint", metavar="ID", help="the newest one when not given")
    arguments = parser.parse_args(argv)
    workspace = Workspace(arguments.root.absolute())
    try:
        run = load_settings(workspace).run
        head = Catalogue(workspace, run).head()
        if head is None:
            raise NotFoundError("the root has no checkpoint yet", where=str(workspace.root), fix="dropforge up")
        count = write_suite(arguments.data / "test.jsonl", workspace.own_suites_dir / NAME, arguments.items)
    except DropforgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    checkpoint = arguments.checkpoint or head.id
    print(f"{count} questions; scoring {checkpoint}", file=sys.stderr)
    return judge(["--root", str(workspace.root), "--candidate", checkpoint, "--suite", NAME, "--json"])


if __name__ == "__main__":
    sys.exit(main())
