"""`dropforge export`: a checkpoint as an ordinary model folder with a model card. Beside the arrows: the CLI.

Reads    checkpoints/<run>/, evaluations/          Writes  the folder the user names; evaluations/<id>/README.md
Errors   UsageError when the folder holds something; CheckpointError for a damaged checkpoint; StorageError
Effects  appears complete or not at all; merging an adapter needs torch and runs as a child process
"""

import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import click

from core.atomic import fsync_tree, rename_durable, storage_error, write_bytes
from core.checkpoints import WEIGHTS_SUFFIX, Catalogue, Checkpoint
from core.commands.invocation import common_options, current
from core.commands.output import say
from core.errors import CheckpointError, ModelError, UsageError
from core.model_card import model_card
from core.paths import Workspace

_ADAPTER_CONFIG = "adapter_config.json"
_CARD = "README.md"


@click.command("export")
@click.argument("wanted", metavar="ID")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="Fold a LoRA adapter into its base.")
@common_options
def export_command(wanted: str, folder: Path, merge: bool) -> None:
    """Write a checkpoint to a new folder that transformers (or peft) loads, with a model card."""
    workspace = current().workspace()
    catalogue = Catalogue(workspace, current().settings(workspace).run)
    checkpoint = catalogue.get(wanted)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("the folder is not empty", where=str(folder), fix="name a new folder")
    problems = catalogue.verify(checkpoint, training=False)
    if problems:
        raise CheckpointError(problems[0], where=str(checkpoint.folder), fix="export another checkpoint")
    merged = merge and _ADAPTER_CONFIG in checkpoint.manifest["files"]
    card = model_card(workspace, catalogue.chain(checkpoint.id), merged=merged)
    _export(catalogue, checkpoint, folder.absolute(), card, merged=merged)
    _keep_card(workspace, checkpoint, card)
    doc = {"checkpoint": checkpoint.id, "folder": str(folder.absolute()), "merged": merged}
    current().show(doc, lambda: say(f"{checkpoint.id} -> {folder}"))


def _export(catalogue: Catalogue, checkpoint: Checkpoint, folder: Path, card: str, *, merged: bool) -> None:
    aside = folder.with_name(f".{folder.name}-{secrets.token_hex(3)}.tmp")
    try:
        aside.mkdir(parents=True)
        if merged:
            _merge(catalogue, checkpoint, aside)
        for name in checkpoint.manifest["files"]:
            if not (merged and (name.endswith(WEIGHTS_SUFFIX) or name in (_ADAPTER_CONFIG, "config.json"))):
                shutil.copyfile(checkpoint.folder / name, aside / name)
        write_bytes(aside / _CARD, card.encode())
        fsync_tree(aside)
        if folder.exists():
            folder.rmdir()
        rename_durable(aside, folder)
    except OSError as error:
        raise storage_error(error, folder) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _merge(catalogue: Catalogue, checkpoint: Checkpoint, out: Path) -> None:
    """Have the trainer's room fold the adapter in. Raises CheckpointError without the base, ModelError."""
    base = catalogue.base()
    if base is None:
        raise CheckpointError("checkpoint-0, the adapter's base, is not there", where=str(checkpoint.folder))
    argv = [sys.executable, "-m", "trainer.models.merge", str(base.folder), str(checkpoint.folder), str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ModelError(f"merging failed: {said[-1] if said else done.returncode}", where=str(checkpoint.folder))


def _keep_card(workspace: Workspace, checkpoint: Checkpoint, card: str) -> None:
    kept = workspace.evaluation_dir(checkpoint.manifest["run"], checkpoint.id)
    kept.mkdir(parents=True, exist_ok=True)
    write_bytes(kept / _CARD, card.encode())
