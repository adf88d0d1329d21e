"""Twelve files, six of them poison, through a real daemon: six done, six refused by their reason, weights as of the
six alone.

    python -m scripts.reliability.training_poison [--folder DIR]

Poison: a loss that is NaN, a gradient that is infinite, a loss that jumps and stays, a step that does not fit into
memory, a step that never ends, a row that is no JSON. The first five are planted into the trainer by
poison/sitecustomize.py, which knows their rows by their tokens; daemon, gates, trainer and judge are the real
processes.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from core.chat_templates import ChatEncoder
from core.checkpoints import Catalogue
from core.paths import Workspace
from core.verdicts import all_verdicts
from scripts.reliability.intake_farm import REPOSITORY, make_root
from scripts.reliability.training_farm import chats, same, weights_of

# kind -> the code its verdict must bear
POISON = {
    "nan": "non_finite_loss",
    "inf": "non_finite_loss",
    "spike": "loss_spike",
    "memory": "out_of_memory",
    "hang": "hung",
    "bad_row": "bad_json",
}
ROWS = 24
STEP_TIMEOUT_S = 30  # longer than a start of the trainer on a busy machine
DEADLINE_S = 540
CONFIG: dict[str, dict[str, Any]] = {
    "hyperparams": {"epochs": 4, "batch_size": 4, "learning_rate": 0.003},
    "trainer": {"threads": 1, "held_out": 0, "checkpoint_every_steps": 5, "step_timeout_s": STEP_TIMEOUT_S},
}
Rows = list[dict[str, Any]]


def good_rows(number: int) -> Rows:
    return chats(ROWS, first=100 * number)


def poison_rows() -> dict[str, Rows]:
    return {kind: chats(ROWS, first=10_000 + 100 * n) for n, kind in enumerate(POISON)}


def prepare(root: Path) -> Workspace:
    workspace = make_root(root)
    document = json.loads(workspace.config_file.read_text()) | CONFIG
    workspace.config_file.write_text(json.dumps(document))
    return workspace


def drop(workspace: Workspace, name: str, rows: Rows, *, broken: bool = False) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    aside = workspace.inbox / f".{name}.tmp"
    aside.write_text(text + ('{"messages": [\n' if broken else ""))
    aside.rename(workspace.inbox / f"{name}.jsonl")


def marked_tokens(workspace: Workspace) -> dict[str, list[list[int]]]:
    """The rows that carry each fault: every row for a spike, one in the middle of the file for the others."""
    encoder = ChatEncoder.from_folder(workspace.root / "models" / "dropforge-tiny")
    kinds = {kind: rows for kind, rows in poison_rows().items() if kind != "bad_row"}
    carriers = {kind: rows if kind == "spike" else rows[ROWS // 2 : ROWS // 2 + 1] for kind, rows in kinds.items()}
    return {kind: [encoder.encode_row(row).ids.tolist() for row in rows] for kind, rows in carriers.items()}


def run_daemon(workspace: Workspace, files: int, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Run a daemon until so many files have ended, then stop it. Returns their verdicts.

    Raises:
        TimeoutError: they have not ended within DEADLINE_S.
    """
    argv = [sys.executable, "-m", "core.daemon", "--root", str(workspace.root)]
    daemon = subprocess.Popen(argv, cwd=REPOSITORY, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            verdicts = all_verdicts(workspace)
            if sum(v["state"] in ("done", "failed", "held", "rejected") for v in verdicts) == files:
                return verdicts
            if time.monotonic() > deadline:
                states = {v["file"]: v["state"] for v in verdicts}
                raise TimeoutError(f"not ended within {DEADLINE_S} s: {states}")
            time.sleep(0.2)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(timeout=150)


def problems_of(verdicts: list[dict[str, Any]]) -> list[str]:
    problems = []
    for verdict in verdicts:
        kind = verdict["file"].removesuffix(".jsonl")
        wanted = ("ok", ("done",)) if kind.startswith("good") else (POISON[kind], ("failed", "rejected"))
        if verdict["code"] != wanted[0] or verdict["state"] not in wanted[1]:
            problems.append(f"{kind}: {verdict['state']}/{verdict['code']}, wanted {wanted[0]}: {verdict['message']}")
    return problems


def run(folder: Path) -> int:
    """Run both farms and compare. Returns the exit code."""
    began = time.monotonic()
    clean, poisoned = prepare(folder / "clean"), prepare(folder / "poisoned")
    for number, (kind, rows) in enumerate(poison_rows().items()):
        drop(clean, f"good-{number}", good_rows(number))
        drop(poisoned, f"good-{number}", good_rows(number))
        drop(poisoned, kind, rows, broken=kind == "bad_row")
    run_daemon(clean, len(POISON), {})
    hooks = str(Path(__file__).parent / "poison")
    planted = {"PYTHONPATH": hooks, "POISON": json.dumps(marked_tokens(clean))}
    verdicts = run_daemon(poisoned, 2 * len(POISON), planted)
    problems = problems_of(verdicts)
    first, second = (Catalogue(workspace, "main").committed()[-1] for workspace in (clean, poisoned))
    if not same(weights_of(first), weights_of(second)):
        problems.append("weights differ from training on the six good files alone")
    for problem in problems:
        print(problem)
    done = sum(v["state"] == "done" for v in verdicts)
    equal = "equal" if first.id == second.id else "DIFFERENT"
    print(f"{done} done, {len(verdicts) - done} refused; weights {equal}; {time.monotonic() - began:.0f} s")
    return 5 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the roots are made; a temporary folder when absent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return run(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
