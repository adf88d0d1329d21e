"""Commands about checkpoints: what is committed, how they compare, what they saw. Beside the arrows: the CLI.

Reads    checkpoints/<run>/, status/leaderboard.json, status/deployment.json, config/suites/
Writes   stdout; a folder of the user's choice for export, through a child process
Errors   NotFoundError for an unknown checkpoint or suite
"""

import os
import re
import textwrap
from pathlib import Path
from typing import Any  # manifests and metrics are JSON

import click

from core.atomic import sha256_file
from core.checkpoints import Catalogue, ends_job
from core.commands.invocation import common_options, current
from core.commands.output import coloured, facts, say, shortened, table
from core.daemon.snapshot_service import pinned, pins_file
from core.paths import Workspace, display_name
from core.provenance import lineage
from core.status import read_status

_WIDTH = 100  # columns that a terminal is expected to have
_INDENT = "  "
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def _catalogue(workspace: Workspace) -> Catalogue:
    return Catalogue(workspace, current().settings(workspace).run)


@click.command("checkpoints")
@click.argument("wanted", metavar="[ID]", required=False)
@common_options
def checkpoints_command(wanted: str | None) -> None:
    """List the committed checkpoints of the run, or tell all about one."""
    catalogue = _catalogue(current().workspace())
    found = catalogue.committed() if wanted is None else [catalogue.get(wanted)]
    manifests = [checkpoint.manifest for checkpoint in found]
    marks = _marks(current().workspace())
    doc = {"checkpoints": manifests}
    if wanted is None:
        current().show(doc, lambda: _show_checkpoints(manifests, marks))
    else:
        current().show(doc, lambda: _show_checkpoint(manifests[0], marks))


def _marks(workspace: Workspace) -> dict[str, list[str]]:
    """What retention leaves alone and a person asks for: the ids that serve, and those that are pinned."""
    serving = (read_status(workspace.status_file("deployment.json")) or {}).get("serving")
    pins = pinned(pins_file(workspace, current().settings(workspace).run))
    return {"serving": [serving] if serving else [], "pinned": sorted(pins)}


def _mark(checkpoint_id: str, marks: dict[str, list[str]]) -> str:
    return ", ".join(word for word, ids in marks.items() if checkpoint_id in ids)


def _show_checkpoints(manifests: list[dict[str, Any]], marks: dict[str, list[str]]) -> None:
    if not manifests:
        say("no checkpoints yet: the trainer imports the base at its first start")
        return
    facts_of = [[m["id"], m["step"], m["created_at"][:19], _files_line(m), m["train_loss"]] for m in manifests]
    rows = [[*row, _mark(str(row[0]), marks)] for row in facts_of]
    table(("checkpoint", "step", "committed", "trained since its parent", "loss", "kept as"), rows)


def _files_line(manifest: dict[str, Any]) -> str:
    if manifest["parent"] is None:
        return f"the base, {manifest['base']['name']}"
    line = ", ".join(str(job["file"]) for job in manifest["jobs"])
    return line if ends_job(manifest) else f"{line} (in the middle)"


def _show_checkpoint(manifest: dict[str, Any], marks: dict[str, list[str]]) -> None:
    plain = ("id", "step", "run", "parent", "created_at", "profile", "train_loss")
    base = f"{manifest['base']['name']} {manifest['base']['sha256'][:12]}"
    size_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    facts(
        [
            *((key, manifest[key]) for key in plain),
            ("base", base),
            ("bytes that travel", size_bytes),
            ("kept as", _mark(manifest["id"], marks)),
        ]
    )
    for job in manifest["jobs"]:
        passes = job["rows_train"] * job["epochs"]
        say(f"trained  {job['file']}: {job['rows_trained']} of {passes} row passes ({job['generator']})")


@click.command("leaderboard")
@common_options
def leaderboard_command() -> None:
    """Show what the judge measured and decided for each candidate."""
    workspace = current().workspace()
    doc = read_status(workspace.status_file("leaderboard.json")) or {"serving": None, "candidates": []}
    current().show(doc, lambda: _show_leaderboard(doc))


def _show_leaderboard(doc: dict[str, Any]) -> None:
    say(f"serving: {doc.get('serving') or 'nothing yet'}")
    if not doc["candidates"]:
        say("no candidate has been judged yet")
        return
    for candidate in doc["candidates"]:
        _show_candidate(candidate)
    for name, best in (doc.get("best") or {}).items():
        say(f"best ever on {name}: {_score(best)} by {best.get('id')}{_drop(best.get('drop_since'))}")


def _show_candidate(candidate: dict[str, Any]) -> None:
    """What was decided and why, and a line a suite: as one row of a table it is wider than any terminal."""
    p_value = candidate.get("p_value")
    odds = f"  p {p_value:.4g}" if isinstance(p_value, int | float) else ""
    click.echo(f"{display_name(str(candidate['id']))}  {coloured(str(candidate['decision']))}{odds}")
    for line in textwrap.wrap(display_name(str(candidate.get("reason") or "")), _WIDTH - len(_INDENT)):
        click.echo(_INDENT + line)
    suites = candidate.get("suites") or {}
    width = max(map(len, suites), default=0)
    for name, suite in suites.items():
        say(f"{_INDENT}{name.ljust(width)}  {_score(suite)}")


def _score(suite: dict[str, Any]) -> str:
    value, count = suite.get("value"), suite.get("n")
    if not isinstance(value, int | float):
        return "-"
    part = f" of {suite['of']}" if suite.get("of") not in (None, count) else ""
    low, high = suite.get("ci95") or (None, None)
    interval = f" [{low:.3g}, {high:.3g}]" if low is not None and high is not None else ""
    return f"{suite.get('metric')} {value:.4g}{interval} (n {count}{part})"


def _drop(since: float | None) -> str:
    if since is None:
        return "; what serves was not asked the same items"
    return f"; what serves is worse by {since:.4g}" if since > 0 else "; what serves is as good"


@click.command("lineage")
@click.argument("wanted", metavar="CHECKPOINT|FILE|SHA256")
@common_options
def lineage_command(wanted: str) -> None:
    """Name the files a checkpoint has seen, or the checkpoints that have seen a file."""
    workspace = current().workspace()
    path = Path(wanted)
    name = sha256_file(path) if not _SHA256.fullmatch(wanted) and os.path.isfile(path) else wanted
    doc = lineage(workspace, current().settings(workspace).run, name)
    current().show(doc, lambda: _show_lineage(doc))


def _show_lineage(doc: dict[str, Any]) -> None:
    if "checkpoint" in doc:
        count = len(doc["files"])
        say(f"checkpoint {doc['checkpoint']} has seen {count} file{'s, in this order' if count != 1 else ''}:")
    else:
        say(f"file {doc['file']}:")
    rows = [
        [shortened(str(f["file"])), f["rows_trained"], f["generator"], str(f["sha256"])[:12], f["job_id"]]
        for f in doc["files"]
    ]
    if rows:
        table(("file", "row passes", "generator", "sha256", "job"), rows)
    say(f"{'chain' if 'checkpoint' in doc else 'seen by'}: {', '.join(doc['checkpoints']) or 'no checkpoint'}")
    say(f"served now: {doc['served'] or 'none of these'}")
