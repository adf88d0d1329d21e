"""The folder of published checkpoints on the serving host (arrow: publisher -> inference server).

Reads    models_dir/incoming/<id>/ as the publisher left it     Writes  models_dir/<id>/, base/<sha256>/, bad/<id>.json,
         by rename
Format   `current` and `previous` are relative links to <id>    Units   sizes in bytes
Errors   RefusedCheckpointError (the checkpoint itself is unfit: never retried), DamagedTransferError (send it again),
         StorageError
Effects  fsyncs what it renames; deletes only below models_dir; torch-free
"""

import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any  # manifests are JSON documents of config/schemas/manifest.schema.json

from core.atomic import (
    fsync_dir,
    fsync_tree,
    read_json,
    rename_durable,
    storage_error,
    write_json,
)
from core.checkpoints import MANIFEST_FILE, expected_id, file_problems, weights_sha256
from core.errors import JsonError, StorageError
from core.status import iso_now
from inference.inspection import (
    DamagedTransferError,
    RefusedCheckpointError,
    StoredCheckpoint,
    check_files,
    read_manifest,
)

CHECKPOINT_ID = re.compile(r"(0|[1-9][0-9]{0,11})-[0-9a-f]{12}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class ModelStore:
    """The folders of one models_dir. The inference server alone writes them, the publisher only `incoming/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_folders(self) -> None:
        """Create what is missing. Raises StorageError."""
        try:
            for name in ("incoming", "base", "bad"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.folder) from error

    def free_bytes(self) -> int:
        """What the disk below models_dir still takes."""
        return shutil.disk_usage(self.folder).free

    def incoming(self, name: str) -> Path:
        """`incoming/<id>` or `incoming/base-<sha256>`."""
        return self.folder / "incoming" / name

    def current(self) -> str | None:
        """The id that `current` names; None when it is missing or no id."""
        return self._linked("current")

    def previous(self) -> str | None:
        """The id that `previous` names; None when it is missing or no id."""
        return self._linked("previous")

    def _linked(self, link: str) -> str | None:
        try:
            target = os.readlink(self.folder / link)
        except OSError:
            return None
        return target if CHECKPOINT_ID.fullmatch(target) else None

    def stored_ids(self) -> list[str]:
        """Every checkpoint folder, by step."""
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted((n for n in names if CHECKPOINT_ID.fullmatch(n)), key=lambda n: (int(n.partition("-")[0]), n))

    def base_sums(self) -> list[str]:
        """The sums of the bases that are stored."""
        try:
            return sorted(name for name in os.listdir(self.folder / "base") if SHA256.fullmatch(name))
        except FileNotFoundError:
            return []

    # -- taking in ------------------------------------------------------------------------------------------------

    def take_in(self, checkpoint_id: str, manifest_sha256: str) -> StoredCheckpoint:
        """Verify what the publisher sent (or what is stored already) and move it to `<id>/`.

        Raises:
            RefusedCheckpointError: unfit whatever the transfer did. DamagedTransferError: bytes differ; incoming is
            removed.
            StorageError: the disk refuses.
        """
        final, sent = self.folder / checkpoint_id, self.incoming(checkpoint_id)
        if not os.path.lexists(sent) and final.is_dir():
            return self._verify(final, checkpoint_id, manifest_sha256)
        if not os.path.lexists(sent):
            raise DamagedTransferError(
                "nothing was sent for this id", where=str(sent), fix="python -m inference.publish ID sends and reloads"
            )
        try:
            stored = self._verify(sent, checkpoint_id, manifest_sha256)
            self._settle(sent, final)
        except DamagedTransferError:
            self.discard(sent)
            raise
        return StoredCheckpoint(final, stored.manifest)

    def take_in_base(self, base_sha256: str, manifest_sha256: str | None) -> StoredCheckpoint:
        """Find the base of an adapter in `base/<sha256>`, moving it there from incoming when it was just sent. Raises
        as take_in.
        """
        final, sent = self.folder / "base" / base_sha256, self.incoming(f"base-{base_sha256}")
        if final.is_dir() and not os.path.lexists(sent):
            return self.read_base(base_sha256)
        if not os.path.lexists(sent) or manifest_sha256 is None:
            raise DamagedTransferError(
                f"the base {base_sha256[:12]} of this adapter is not here",
                where=str(final),
                fix="publish again; the publisher sends the base",
            )
        try:
            manifest = read_manifest(sent, manifest_sha256)
            check_files(sent, manifest)
            if weights_sha256(manifest["files"], None) != base_sha256:
                raise RefusedCheckpointError("the base sent is not the base of this adapter", where=str(sent))
            if final.is_dir():
                self.discard(final)
            self._settle(sent, final)
        except DamagedTransferError:
            self.discard(sent)
            raise
        return StoredCheckpoint(final, manifest)

    def read(self, checkpoint_id: str) -> StoredCheckpoint:
        """Re-hash a stored checkpoint before it is loaded. Raises DamagedTransferError, RefusedCheckpointError."""
        folder = self.folder / checkpoint_id
        manifest = read_manifest(folder, None)
        if manifest["id"] != checkpoint_id:
            raise RefusedCheckpointError(f"the folder holds {manifest['id']}", where=str(folder))
        check_files(folder, manifest)
        return StoredCheckpoint(folder, manifest)

    def read_base(self, base_sha256: str) -> StoredCheckpoint:
        """Re-hash a stored base. Raises DamagedTransferError, RefusedCheckpointError."""
        folder = self.folder / "base" / base_sha256
        if not folder.is_dir():
            raise DamagedTransferError(
                f"the base {base_sha256[:12]} of this adapter is not here",
                where=str(folder),
                fix="publish again; the publisher sends the base",
            )
        manifest = read_manifest(folder, None)
        check_files(folder, manifest)
        if weights_sha256(manifest["files"], None) != base_sha256:
            raise DamagedTransferError("the weights are not those of this base", where=str(folder), fix="publish again")
        return StoredCheckpoint(folder, manifest)

    def _verify(self, folder: Path, checkpoint_id: str, manifest_sha256: str) -> StoredCheckpoint:
        manifest = read_manifest(folder, manifest_sha256)
        if manifest["id"] != checkpoint_id or expected_id(manifest) != checkpoint_id:
            raise RefusedCheckpointError(
                f"the manifest is that of {manifest['id']}, its weights give {expected_id(manifest)}", where=str(folder)
            )
        check_files(folder, manifest)
        return StoredCheckpoint(folder, manifest)

    def _settle(self, sent: Path, final: Path) -> None:
        try:
            if final.is_dir():
                if not file_problems(final, read_json(sent / MANIFEST_FILE)["files"]):
                    self.discard(sent)
                    return
                self.discard(final)  # it was damaged on this disk; what was just sent is whole
            fsync_tree(sent)
            rename_durable(sent, final)
        except OSError as error:
            raise storage_error(error, final) from error

    # -- links ----------------------------------------------------------------------------------------------------

    def flip(self, checkpoint_id: str) -> None:
        """Make `current` name this checkpoint and `previous` the one before; a crash between leaves a servable pair.

        Raises StorageError.
        """
        before = self.current()
        if before is not None and before != checkpoint_id:
            self._link("previous", before)
        self._link("current", checkpoint_id)

    def _link(self, name: str, target: str) -> None:
        aside = self.folder / f".{name}-{secrets.token_hex(4)}"
        try:
            aside.symlink_to(target)
            aside.replace(self.folder / name)
            fsync_dir(self.folder)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise storage_error(error, self.folder / name) from error

    # -- bad marks and room -----------------------------------------------------------------------------------------

    def mark_bad(self, checkpoint_id: str, manifest_sha256: str, reason: str) -> None:
        """Remember that this candidate failed its gate, so that it is not tried again. Side effects: its folder is
        deleted.
        """
        doc = {"id": checkpoint_id, "manifest_sha256": manifest_sha256, "reason": reason, "at": iso_now()}
        for folder in (self.incoming(checkpoint_id), self.folder / checkpoint_id):
            if os.path.lexists(folder):
                self.discard(folder)
        write_json(self.folder / "bad" / f"{checkpoint_id}.json", doc)  # last: a full disk has room for it now

    def bad_reason(self, checkpoint_id: str, manifest_sha256: str) -> str | None:
        """Why these very bytes failed before; None when they did not."""
        doc = self.bad_marks().get(checkpoint_id)
        return str(doc["reason"]) if doc is not None and doc.get("manifest_sha256") == manifest_sha256 else None

    def bad_marks(self) -> dict[str, dict[str, Any]]:
        """id -> the mark {id, manifest_sha256, reason, at}."""
        marks = {}
        for path in sorted((self.folder / "bad").glob("*.json")):
            try:
                marks[path.stem] = read_json(path)
            except (JsonError, StorageError):
                continue  # a damaged mark only means that the candidate would be tried again
        return marks

    def discard(self, folder: Path) -> None:
        """Delete a folder (or a link) below models_dir: renamed away first, so that nobody meets half of it."""
        trash = self.folder / f".trash-{secrets.token_hex(6)}"
        try:
            folder.rename(trash)
            if trash.is_symlink() or not trash.is_dir():
                trash.unlink()
            else:
                shutil.rmtree(trash)
        except OSError as error:
            raise storage_error(error, folder) from error

    def make_room(self, keep: int, in_use: set[str]) -> list[str]:
        """Delete the oldest checkpoints and bases that nothing needs, keeping `keep`. Returns the ids deleted."""
        needed = in_use | {i for i in (self.current(), self.previous()) if i is not None}
        spare = [i for i in self.stored_ids() if i not in needed]
        room = max(0, keep - len(needed))
        deleted = spare[: max(0, len(spare) - room)]
        for checkpoint_id in deleted:
            self.discard(self.folder / checkpoint_id)
        for trash in self.folder.glob(".trash-*"):
            shutil.rmtree(trash, ignore_errors=True)
        self._drop_unused_bases()
        return deleted

    def _drop_unused_bases(self) -> None:
        manifests = [read_json(self.folder / i / MANIFEST_FILE) for i in self.stored_ids()]
        used = {str(m["base"]["sha256"]) for m in manifests}
        for folder in (self.folder / "base").iterdir():
            if folder.name not in used:
                self.discard(folder)
