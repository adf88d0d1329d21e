"""The checkpoint catalogue: what is committed, in which order, and whether it is whole (arrow: checkpoints).

Reads    checkpoints/<run>/checkpoint-<step>/, checkpoints/<run>/manifests/
Writes   checkpoints/.incomplete/ while a commit is made, then one rename; checkpoints/.undone/ for what is taken back
Format   MANIFEST.json (manifest.v1), written last; order is the chain of `parent`, never a number or an mtime
Errors   CheckpointError naming the folder; StorageError when the disk refuses
Effects  fsyncs every file, folder and parent of a commit; a committed folder is never written into. Copies of manifest
         and record are made in manifests/ after the rename that commits: a folder lost later leaves no gap in the chain
Used by  commit, undo_after, take_back_cut_off, copy_missing: trainer; remove: snapshot service; the rest: everybody
"""

import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # manifests are JSON documents of config/schemas/manifest.schema.json

from core.atomic import (
    fsync_dir,
    fsync_tree,
    read_json,
    rename_durable,
    sha256_file,
    storage_error,
    write_json,
)
from core.errors import CheckpointError, JsonError, NotFoundError, StorageError
from core.manifest_chain import TRAINED_ROWS_FILE as TRAINED_ROWS_FILE
from core.manifest_chain import ManifestCopies, cut_off, in_chain_order, is_manifest
from core.paths import Workspace
from core.status import iso_now

MANIFEST_FILE = "MANIFEST.json"
REPLAYED_EPOCH = 0xFFFF  # marks a row pass of an earlier job mixed into a later one: no pass of its own epochs
WEIGHTS_SUFFIX = ".safetensors"
# What travels to the inference server; everything else in a checkpoint is checked only for resume and never sent.
TRAVELLING = re.compile(
    r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|(adapter_config|config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|chat_template\.jinja|vocab\.json|merges\.txt"
)
_FOLDER = re.compile(r"checkpoint-(0|[1-9][0-9]*)", re.ASCII)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.manifest["id"])

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def parent(self) -> str | None:
        return self.manifest["parent"]  # type: ignore[no-any-return]  # the schema says string or null

    @property
    def ends_job(self) -> bool:
        return ends_job(self.manifest)

    @property
    def manifest_file(self) -> Path:
        return self.folder / MANIFEST_FILE


def ends_job(manifest: Mapping[str, Any]) -> bool:
    """True when the commit covers the last row of its last job: only those commits are judged."""
    jobs = manifest["jobs"]
    return bool(jobs) and jobs[-1]["rows_trained"] == jobs[-1]["rows_train"] * jobs[-1]["epochs"]


def weights_sha256(files: Mapping[str, Mapping[str, Any]], base_sha256: str | None) -> str:
    """SHA-256 over `<name> <sha256>` lines of the weight files sorted by name, then `base <base sha256>`.

    Args:
        files: a manifest's `files`. base_sha256: None for a base itself.
    """
    lines = [f"{name} {files[name]['sha256']}\n" for name in sorted(files) if name.endswith(WEIGHTS_SUFFIX)]
    if base_sha256 is not None:
        lines.append(f"base {base_sha256}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_entries(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`{name: {"bytes", "sha256"}}` of the named files, read from the disk."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in sorted(names)
    }


def file_problems(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare files with what a manifest says of them; an empty list means every byte is as it was."""
    problems = []
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            problems.append(f"{path}: missing, or not a regular file")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
        elif (found := sha256_file(path)) != entry["sha256"]:
            problems.append(f"{path}: sha256 {found[:12]}, the manifest says {str(entry['sha256'])[:12]}")
    return problems


class Catalogue:
    """The checkpoints of one run."""

    def __init__(self, workspace: Workspace, run: str) -> None:
        self._workspace = workspace
        self.run = run
        self._folder = workspace.run_dir(run)
        self.copies = ManifestCopies(workspace.manifests_dir(run), run)

    def manifests(self) -> list[dict[str, Any]]:
        """Every manifest of the run in chain order, base first, removed checkpoints included.

        Raises:
            CheckpointError: the chain has a gap or a fork.
        """
        return self._in_order(self.whole())

    def _in_order(self, folders: Iterable[Checkpoint]) -> list[dict[str, Any]]:
        return in_chain_order(self._with_copies(folders), self._folder)

    def known(self) -> list[dict[str, Any]]:
        """Every manifest that there is, in no order, whether they make a chain or not."""
        return self._with_copies(self.whole())

    def _with_copies(self, folders: Iterable[Checkpoint]) -> list[dict[str, Any]]:
        """One manifest a step, its folder's where there is one."""
        found = {m["step"]: m for m in self.copies.manifests()} | {c.step: c.manifest for c in folders}
        return list(found.values())

    def committed(self) -> list[Checkpoint]:
        """The checkpoints whose folders exist, in chain order, base first."""
        by_id = {checkpoint.id: checkpoint for checkpoint in self.whole()}
        return [by_id[m["id"]] for m in self._in_order(by_id.values()) if m["id"] in by_id]

    def head(self) -> Checkpoint | None:
        """The newest commit by manifest order; None before the base is imported."""
        committed = self.committed()
        return committed[-1] if committed else None

    def base(self) -> Checkpoint | None:
        """The checkpoint that the run began with; None when its folder is gone or nothing is committed."""
        committed = self.committed()
        return committed[0] if committed and committed[0].parent is None else None

    def get(self, wanted: str) -> Checkpoint:
        """Find by id, by `checkpoint-<step>`, by step or by an unambiguous start of the id.

        Raises:
            NotFoundError: none or several match, or retention has removed the weights of the one that does.
        """
        committed = {checkpoint.id: checkpoint for checkpoint in self.whole()}
        named = _answering(self._in_order(committed.values()), wanted)
        found = [committed[checkpoint_id] for checkpoint_id in named if checkpoint_id in committed]
        if len(found) == 1:
            return found[0]
        if len(named) == 1 and committed:
            raise _removed(named[0], list(committed.values()))
        problem = "more than one checkpoint" if len(named) > 1 else "no checkpoint"
        raise NotFoundError(f"{problem} {wanted!r} in run {self.run}", fix="dropforge checkpoints lists them")

    def chain(self, checkpoint_id: str) -> list[dict[str, Any]]:
        """The manifests from the base to this checkpoint, both included. Raises NotFoundError."""
        manifests = self.manifests()
        for position, manifest in enumerate(manifests):
            if manifest["id"] == checkpoint_id:
                return manifests[: position + 1]
        raise NotFoundError(
            f"no manifest of {checkpoint_id!r} in run {self.run}", fix="dropforge checkpoints lists them"
        )

    def trained_rows_file(self, checkpoint_id: str) -> Path:
        """The record of the rows trained since the parent, in the folder or, when it is gone there, in manifests/."""
        for checkpoint in self.whole():
            if checkpoint.id == checkpoint_id and (record := checkpoint.folder / TRAINED_ROWS_FILE).is_file():
                return record
        return self.copies.record(checkpoint_id)

    def verify(self, checkpoint: Checkpoint, *, training: bool) -> list[str]:
        """Re-hash a checkpoint. `training` also checks what only a resume needs. Returns the problems found."""
        manifest = checkpoint.manifest
        problems = file_problems(checkpoint.folder, manifest["files"])
        if training:
            problems += file_problems(checkpoint.folder, manifest["training_files"])
        if expected_id(manifest) != manifest["id"]:
            problems.append(f"{checkpoint.manifest_file}: the id is not that of its weights")
        return problems

    def damage(self) -> list[str]:
        """What is called a checkpoint, or the copy of a manifest, and is none; a sentence each."""
        whole = {checkpoint.folder for checkpoint in self.whole()}
        named = [p for p in sorted(self._folder.glob("checkpoint-*")) if p.is_dir() and _FOLDER.fullmatch(p.name)]
        broken = [f"{p}: no {MANIFEST_FILE} of this run and step: no checkpoint" for p in named if p not in whole]
        return broken + [f"{path}: no copy of a manifest any more" for path in self.copies.damaged()]

    def stage(self, step: int) -> Path:
        """Make an empty folder in .incomplete/ to write a commit into. Raises StorageError."""
        folder = self._workspace.incomplete_dir / f"{self.run}-{step}-{secrets.token_hex(3)}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise storage_error(error, folder) from error
        return folder

    def commit(self, staged: Path, fields: Mapping[str, Any], *, wanted_id: str | None = None) -> Checkpoint:
        """Turn a staged folder into a commit: hash, fsync, manifest last, rename, fsync the parents; then the copies.

        The rename commits. The copies come after it: made before, a crash in between would leave those of a commit that
        never was. A crash in between, or a disk that refuses them, leaves a commit without copies, as roots made before
        there were any are full of: `copy_missing` makes them at the trainer's next start.

        Args:
            fields: `step, parent, base, tokenizer_sha256, chat_template_sha256, profile, config_sha256, versions, jobs,
                train_loss`; `base` is None for the base itself, whose sum is computed here.
            wanted_id: the id that it must get, when it stands in for a lost one.

        Raises:
            CheckpointError: it would get another id.
            StorageError: the disk refuses, or the step is already committed; nothing is visible then.
        """
        try:
            manifest = self._manifest(staged, dict(fields))
            if wanted_id not in (None, manifest["id"]):
                raise CheckpointError(f"its weights give {manifest['id']}, not {wanted_id}", where=str(staged))
            fsync_tree(staged)
            write_json(staged / MANIFEST_FILE, manifest)
            self._folder.mkdir(parents=True, exist_ok=True)
            fsync_dir(self._workspace.checkpoints_dir)
            target = self._folder / f"checkpoint-{manifest['step']}"
            rename_durable(staged, target)
        except OSError as error:
            raise storage_error(error, staged) from error
        checkpoint = Checkpoint(target, manifest)
        self._copy(checkpoint)
        return checkpoint

    def _copy(self, checkpoint: Checkpoint) -> None:
        try:
            self.copies.keep(checkpoint.manifest, checkpoint.folder / TRAINED_ROWS_FILE)
        except StorageError as error:  # it is committed all the same
            logger.warning("checkpoint %s has no copy of its manifest: %s", checkpoint.id, error)

    def copy_missing(self) -> None:
        """Make the copies that a commit has not: made before there were any, or interrupted, or damaged since."""
        copied = {manifest["id"] for manifest in self.copies.manifests()}
        for checkpoint in self.whole():
            if checkpoint.id not in copied:
                self._copy(checkpoint)

    def _manifest(self, staged: Path, fields: dict[str, Any]) -> dict[str, Any]:
        names = [str(p.relative_to(staged)) for p in staged.rglob("*") if p.is_file()]
        files = file_entries(staged, [name for name in names if TRAVELLING.fullmatch(name)])
        training_files = file_entries(staged, [name for name in names if not TRAVELLING.fullmatch(name)])
        base = fields.pop("base")
        if base.get("sha256") is None:
            base = {"name": base["name"], "sha256": weights_sha256(files, None)}
        manifest = {
            "schema": "manifest.v1",
            "id": "",
            "run": self.run,
            "created_at": iso_now(),
            "files": files,
            "training_files": training_files,
            "base": base,
            **fields,
        }
        manifest["id"] = expected_id(manifest)
        return manifest

    def undo_after(self, checkpoint_id: str) -> list[str]:
        """Take back every commit after this one, newest first, so that a crash on the way leaves a whole chain.

        Returns the ids taken back. Side effects: their folders stand in checkpoints/.undone/ afterwards.
        """
        manifests = self.manifests()
        position = next((i for i, m in enumerate(manifests) if m["id"] == checkpoint_id), None)
        if position is None:
            raise NotFoundError(
                f"no manifest of {checkpoint_id!r} in run {self.run}", fix="dropforge checkpoints lists them"
            )
        later = [m["id"] for m in manifests[position + 1 :]]
        for undone in reversed(later):
            self._undo(undone)
        return later

    def cut_off(self) -> list[dict[str, Any]]:
        """The manifests that no way leads to from the base, newest first: one between was lost, and its copy too."""
        return cut_off(self.known(), self._folder)

    def take_back_cut_off(self) -> None:
        """Move what is cut off to checkpoints/.undone/, so that the chain ends before the gap."""
        for manifest in self.cut_off():
            self._undo(manifest["id"])

    def _undo(self, checkpoint_id: str) -> None:
        """One commit, whole or only its copies. A folder's copies go first: a crash between leaves it committed."""
        self._workspace.undone_dir.mkdir(parents=True, exist_ok=True)
        mark = f"{self.run}-{checkpoint_id}-{secrets.token_hex(3)}"
        folders = [c.folder for c in self.whole() if c.id == checkpoint_id]
        if folders:
            self.copies.forget(checkpoint_id)
        for source in folders:
            rename_durable(source, self._workspace.undone_dir / mark)
        for source in self.copies.files(checkpoint_id):
            rename_durable(source, self._workspace.undone_dir / f"{mark}{source.suffix}")

    def broken(self) -> list[Path]:
        """What is called checkpoint-* and is none: no manifest of this run and step, or not that of its weights."""
        whole = {c.folder for c in self.whole() if expected_id(c.manifest) == c.id}
        return [entry for entry in sorted(self._folder.glob("checkpoint-*")) if entry not in whole]

    def set_aside_broken(self) -> list[Path]:
        """Move folders called checkpoint-* that are no checkpoints into .incomplete/. Returns where they stand now."""
        moved = []
        for entry in self.broken():
            target = self._workspace.incomplete_dir / f"{self.run}-{entry.name}-{secrets.token_hex(3)}"
            self._workspace.incomplete_dir.mkdir(parents=True, exist_ok=True)
            rename_durable(entry, target)
            moved.append(target)
        return moved

    def set_aside(self, checkpoint: Checkpoint) -> Path:
        """Move one damaged checkpoint into .incomplete/."""
        target = self._workspace.incomplete_dir / f"{self.run}-{checkpoint.id}-{secrets.token_hex(3)}"
        self._workspace.incomplete_dir.mkdir(parents=True, exist_ok=True)
        rename_durable(checkpoint.folder, target)
        return target

    def remove(self, checkpoint: Checkpoint) -> None:
        """Delete a checkpoint's weights, keeping its manifest and its record of trained rows.

        Side effects: both are in manifests/, fsynced, before the folder is renamed away and deleted.
        """
        self.copies.keep(checkpoint.manifest, checkpoint.folder / TRAINED_ROWS_FILE)
        try:
            trash = self._folder / f".trash-{checkpoint.id}-{secrets.token_hex(3)}"
            rename_durable(checkpoint.folder, trash)
            shutil.rmtree(trash)
        except OSError as error:
            raise storage_error(error, checkpoint.folder) from error

    def whole(self) -> list[Checkpoint]:
        """Folders with a readable manifest that says this run and this step, in no order."""
        try:
            names = [entry.name for entry in os.scandir(self._folder) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        found = [self._read(name) for name in names if _FOLDER.fullmatch(name)]
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def _read(self, name: str) -> Checkpoint | None:
        folder = self._folder / name
        try:
            manifest = read_json(folder / MANIFEST_FILE)
        except (JsonError, StorageError):
            return None
        right = is_manifest(manifest, self.run) and name == f"checkpoint-{manifest['step']}"
        return Checkpoint(folder, manifest) if right else None


def expected_id(manifest: Mapping[str, Any]) -> str:
    """`<step>-<12 hex>` from the weights' hashes that a manifest lists."""
    is_base = manifest["parent"] is None
    digest = weights_sha256(manifest["files"], None if is_base else manifest["base"]["sha256"])
    return f"{manifest['step']}-{digest[:12]}"


def _answering(manifests: list[dict[str, Any]], wanted: str) -> list[str]:
    """The ids that answer to an id, a step or `checkpoint-<step>`; without any, those that start so."""
    exact = [m["id"] for m in manifests if wanted in (m["id"], str(m["step"]), f"checkpoint-{m['step']}")]
    return exact or [m["id"] for m in manifests if wanted and m["id"].startswith(wanted)]


def _removed(checkpoint_id: str, kept: list[Checkpoint]) -> NotFoundError:
    step = int(checkpoint_id.partition("-")[0])
    nearest = min(kept, key=lambda c: abs(c.step - step))
    return NotFoundError(
        f"checkpoint {checkpoint_id} was committed, its weights were removed (checkpoints.keep)",
        fix=f"nearest kept: {nearest.id}; dropforge pin ID keeps one for good",
    )
