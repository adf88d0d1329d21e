"""`python -m trainer.evaluate`: the judge's process (arrow: judge).

    --candidate ID [--serving ID] [--superseded ID...] [--suite S]     judge a commit, record the decision
    --compare A B [--suite S] [--json]                                 two checkpoints side by side
    --refresh [--serving ID]                                           rewrite the leaderboard after a deployment
    --check-suite FOLDER                                               {"error": null, or what is wrong with a suite}

Exit     0 judged (whatever the decision) · 1 unexpected · 2 usage · 4 storage
Effects  started by the daemon it dies with it; gives way to trainer and server on the CPU (nice), and takes one thread
         for a small model and while something is being trained, every core otherwise
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from core.checkpoints import Catalogue, Checkpoint
from core.daemon.pid_manager import die_with_parent
from core.errors import DropforgeError, InternalError, UsageError
from core.logs import setup_logging
from core.paths import Workspace, find_root
from core.settings import Settings, load_settings
from core.status import read_status
from trainer.evaluate.bench import Bench, environment
from trainer.evaluate.device import choose, free_memory, needed_bytes, weight_bytes
from trainer.evaluate.judge import Judge
from trainer.evaluate.leaderboard import Leaderboard
from trainer.evaluate.scorer import Scorer
from trainer.evaluate.side_by_side import render, side_by_side
from trainer.evaluate.suites import load_suite

# Beside a trainer on all cores it then gets what that leaves: training lost 13 % of its speed instead of 20 %, and the
# judge was no slower (docs/log.md, "Judge").
_NICE = 10
# Two threads took twice as long as one with 1 MB of weights, and 0.8 times as long with 118 MB.
_SMALL_BYTES = 1 << 26
logger = logging.getLogger("judge")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one judgement, comparison or refresh; returns the exit code."""
    die_with_parent()
    arguments = _parser().parse_args(argv)
    if arguments.check_suite is not None:
        return _check_suite(arguments.check_suite)
    try:
        workspace = Workspace(find_root(arguments.root))
        setup_logging(workspace, "judge")
        settings = load_settings(workspace, arguments.set)
        return _run(workspace, settings, arguments)
    except DropforgeError as error:
        logger.error("%s", error)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate", description="Judge a checkpoint.")
    parser.add_argument("--root", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--candidate", metavar="ID")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"))
    what.add_argument("--refresh", action="store_true")
    what.add_argument("--check-suite", type=Path, metavar="FOLDER")
    parser.add_argument("--serving", metavar="ID")
    parser.add_argument("--superseded", nargs="+", action="extend", default=[], metavar="ID")
    parser.add_argument("--suite", metavar="S")
    parser.add_argument("--threads", type=int, help="one beside a training run or for a small model, else one a core")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


def _check_suite(folder: Path) -> int:
    """Print as JSON what the judge would refuse in a suite; null when it can be used."""
    problem: dict[str, object] | None = None
    try:
        load_suite(folder)
    except DropforgeError as error:
        problem = error.as_dict()
    sys.stdout.write(json.dumps({"error": problem}) + "\n")
    return 0 if problem is None else UsageError.exit_code


def _run(workspace: Workspace, settings: Settings, arguments: argparse.Namespace) -> int:
    if arguments.refresh:
        _refresh(workspace, settings.run, arguments.serving, arguments.superseded)
        return 0
    threads = _threads(workspace, settings.run) if arguments.threads is None else arguments.threads
    if threads < 1:
        raise UsageError(f"--threads is {threads}", fix="give 1 or more")
    bench = _bench(workspace, settings, threads)
    judge = Judge(workspace, settings, bench)
    if arguments.compare:
        doc = side_by_side(workspace, settings, judge, bench, arguments.compare, arguments.suite)
        sys.stdout.write((json.dumps(doc, ensure_ascii=False) if arguments.json else render(doc)) + "\n")
        return 0
    doc = judge.judge(arguments.candidate, arguments.serving, superseded=arguments.superseded, only=arguments.suite)
    logger.info("%s: %s", doc["id"], f"{doc['decision']}, {doc['reason']}" if "decision" in doc else "scored")
    if arguments.json:
        sys.stdout.write(json.dumps(doc, ensure_ascii=False) + "\n")
    return 0


def _threads(workspace: Workspace, run: str) -> int:
    """One beside a trainer, where teams fight over cores, and for a small model, which a team only slows down."""
    base = Catalogue(workspace, run).base()
    trains = (read_status(workspace.status_file("training_status.json")) or {}).get("status") == "training"
    small = base is None or weight_bytes(base.manifest) < _SMALL_BYTES
    return 1 if trains or small else len(os.sched_getaffinity(0))


def _refresh(workspace: Workspace, run: str, serving: str | None, superseded: Sequence[str]) -> None:
    board = Leaderboard(workspace, run)
    board.serving = serving or board.serving
    board.supersede(superseded, "a newer checkpoint")
    board.mark_failed_gates()
    board.save()


def _bench(workspace: Workspace, settings: Settings, threads: int) -> Bench:
    base = Catalogue(workspace, settings.run).base()
    need = needed_bytes([base.manifest] if base is not None else [])
    device = choose(settings.evaluation.device, need, free_memory())

    def load(checkpoint: Checkpoint) -> Scorer:
        from trainer.evaluate.scoring import load_scorer  # loads torch: seconds that a cached result does not need

        root = Catalogue(workspace, str(checkpoint.manifest["run"])).base()
        if root is None:
            raise InternalError(f"run {checkpoint.manifest['run']} has no base", where=str(checkpoint.folder))
        return load_scorer(checkpoint.folder, root.folder, device=device, threads=threads)

    return Bench(workspace, load, environment(device))


if __name__ == "__main__":
    os.nice(_NICE)
    sys.exit(main())
