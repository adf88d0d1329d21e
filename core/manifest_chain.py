"""Manifests of one run: how they hang together, and the copies that outlive their folders (arrow: checkpoints).

Reads    checkpoints/<run>/manifests/
Writes   the same: <id>.json, a commit's manifest, and <id>.npy, its record of trained rows
Format   the first manifest has no parent, every other one names the one before it
Errors   CheckpointError for a chain that is none; a damaged copy is left out, with a warning
Effects  a copy is fsynced, its record first: whoever finds the manifest finds the record
"""

import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any  # manifests are JSON documents of config/schemas/manifest.schema.json

from core.atomic import fsync_dir, read_json, sha256_file, storage_error, write_bytes, write_json
from core.errors import CheckpointError, JsonError, StorageError

TRAINED_ROWS_FILE = "trained_rows.npy"
_NEEDED = {"id", "step", "parent", "jobs", "base", "files", "training_files"}
Manifest = dict[str, Any]
logger = logging.getLogger(__name__)


def is_manifest(document: Manifest, run: str) -> bool:
    """True for a manifest.v1 of this run with every key that the chain and a resume stand on."""
    ours = document.get("schema") == "manifest.v1" and document.get("run") == run
    return ours and document.keys() >= _NEEDED


def in_chain_order(manifests: Iterable[Manifest], folder: Path) -> list[Manifest]:
    """The manifests by the chain of `parent`, base first. Raises CheckpointError for a gap or a fork."""
    ordered, lost = _follow(manifests, folder)
    if lost:
        raise CheckpointError(
            f"no way from the base to {', '.join(sorted(m['id'] for m in lost))}",
            where=str(folder),
            fix="put the missing checkpoint back; else the trainer takes these back at its start and trains them anew",
        )
    return ordered


def cut_off(manifests: Iterable[Manifest], folder: Path) -> list[Manifest]:
    """The manifests behind a gap, newest step first. Raises CheckpointError for a fork."""
    return sorted(_follow(manifests, folder)[1], key=lambda manifest: -int(manifest["step"]))


def _follow(manifests: Iterable[Manifest], folder: Path) -> tuple[list[Manifest], list[Manifest]]:
    children: dict[str | None, list[Manifest]] = {}
    for manifest in manifests:
        children.setdefault(manifest["parent"], []).append(manifest)
    ordered: list[Manifest] = []
    link: str | None = None
    while following := children.pop(link, []):
        if len(following) > 1:
            ids = ", ".join(sorted(m["id"] for m in following))
            raise CheckpointError(f"the chain forks after {link}: {ids}", where=str(folder), fix="dropforge rewind ID")
        ordered.append(following[0])
        link = following[0]["id"]
    return ordered, [manifest for group in children.values() for manifest in group]


class ManifestCopies:
    """`checkpoints/<run>/manifests/`: bytes of their own, no links: what is done to a folder does not reach them."""

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._run = run

    def manifests(self) -> list[Manifest]:
        """Every whole copy. Raises StorageError when the disk refuses: a passing fault must not look like a gap."""
        return [manifest for manifest in map(self._read, self._paths()) if manifest is not None]

    def damaged(self) -> list[Path]:
        """The files that are called like copies and are none."""
        return [path for path in self._paths() if self._read(path) is None]

    def record(self, checkpoint_id: str) -> Path:
        """Where the copy of a commit's record of trained rows lies."""
        return self._folder / f"{checkpoint_id}.npy"

    def files(self, checkpoint_id: str) -> list[Path]:
        """What there is of one commit, its manifest first: without it the record counts for nothing."""
        return [p for p in (self._folder / f"{checkpoint_id}.json", self.record(checkpoint_id)) if p.exists()]

    def keep(self, manifest: Manifest, record: Path) -> None:
        """Copy a commit's manifest and record, unless they are there. Raises StorageError.

        Args:
            record: the record in the commit's folder; a missing one is left out.
        """
        copy = self._folder / f"{manifest['id']}.json"
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True)
                fsync_dir(self._folder.parent)
            kept, listed = self.record(manifest["id"]), manifest["training_files"].get(TRAINED_ROWS_FILE, {})
            if record.is_file() and not (kept.is_file() and sha256_file(kept) == listed.get("sha256")):
                write_bytes(kept, record.read_bytes())
            if not copy.is_file() or self._read(copy) != manifest:
                write_json(copy, manifest)
        except OSError as error:
            raise storage_error(error, copy) from error

    def forget(self, checkpoint_id: str) -> None:
        """Delete the copies of a commit whose folder is there. Raises StorageError."""
        files = self.files(checkpoint_id)
        try:
            for path in files:
                path.unlink()
            if files:
                fsync_dir(self._folder)
        except OSError as error:
            raise storage_error(error, self._folder) from error

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []

    def _read(self, path: Path) -> Manifest | None:
        try:
            manifest = read_json(path)
        except JsonError as error:
            _warn(str(error))
            return None
        except StorageError:
            if path.exists():
                raise
            return None  # removed since the folder was listed
        if is_manifest(manifest, self._run) and manifest["id"] == path.stem:
            return manifest
        _warn(f"{path}: not the manifest of {path.stem}")
        return None


@lru_cache(maxsize=64)
def _warn(damage: str) -> None:
    """Once a process: the copies are read at every look at the chain."""
    logger.warning("a copy of a manifest is left out: %s", damage)
