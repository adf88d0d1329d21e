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
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any  # manifests are JSON documents of config/schemas/manifest.schema.json

import jsonschema_rs

from core.atomic import (
    fsync_dir,
    fsync_tree,
    parse_json,
    read_json,
    rename_durable,
    sha256_file,
    storage_error,
    write_json,
)
from core.checkpoints import MANIFEST_FILE, TRAVELLING, expected_id, file_problems, weights_sha256
from core.errors import GateFailedError, JsonError, StorageError
from core.paths import schema_file
from core.status import iso_now

CHECKPOINT_ID = re.compile(r"(0|[1-9][0-9]{0,11})-[0-9a-f]{12}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LARGEST_MANIFEST_BYTES = 16 << 20
_LARGEST_JSON_BYTES = 64 << 20
# Fields that make a library fetch or run code, or take another arithmetic than the one that was judged.
_REFUSED_FIELDS = re.compile(
    r"auto_map|auto_mapping|trust_remote_code|custom_pipelines|_?attn_implementation\w*|\w*kernel\w*|quantization_config"
)
_CHECKED_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "special_tokens_map.json",
)


class RefusedCheckpointError(GateFailedError):
    """This checkpoint must never serve; sending it again does not help."""

    code = 2102
    slug = "refused"


class DamagedTransferError(GateFailedError):
    """What arrived is not what was sent; sending it again may help."""

    code = 2103
    slug = "damaged"


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A verified folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.manifest["id"])

    @property
    def is_adapter(self) -> bool:
        return "adapter_model.safetensors" in self.manifest["files"]

    @property
    def base_sha256(self) -> str:
        return str(self.manifest["base"]["sha256"])

    @property
    def weights_sha256(self) -> str:
        """The sum by which other checkpoints would name this one as their base."""
        return weights_sha256(self.manifest["files"], None)


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
            names = [e.name for e in os.scandir(self.folder) if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted((n for n in names if CHECKPOINT_ID.fullmatch(n)), key=lambda n: (int(n.partition("-")[0]), n))

    # -- taking in ------------------------------------------------------------------------------------------------

    def take_in(self, checkpoint_id: str, manifest_sha256: str) -> StoredCheckpoint:
        """Verify what the publisher sent (or what is stored already) and move it to `<id>/`.

        Raises:
            RefusedCheckpointError: unfit whatever the transfer did. DamagedTransferError: bytes differ; incoming is
            removed.
            StorageError: nothing was sent, or the disk refuses.
        """
        final, sent = self.folder / checkpoint_id, self.incoming(checkpoint_id)
        if not os.path.lexists(sent) and final.is_dir():
            return self._verify(final, checkpoint_id, manifest_sha256)
        if not os.path.lexists(sent):
            raise StorageError(
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
            manifest = self._manifest(sent, manifest_sha256)
            self._check_files(sent, manifest)
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
        manifest = self._manifest(folder, None)
        if manifest["id"] != checkpoint_id:
            raise RefusedCheckpointError(f"the folder holds {manifest['id']}", where=str(folder))
        self._check_files(folder, manifest)
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
        manifest = self._manifest(folder, None)
        self._check_files(folder, manifest)
        if weights_sha256(manifest["files"], None) != base_sha256:
            raise DamagedTransferError("the weights are not those of this base", where=str(folder), fix="publish again")
        return StoredCheckpoint(folder, manifest)

    def _verify(self, folder: Path, checkpoint_id: str, manifest_sha256: str) -> StoredCheckpoint:
        manifest = self._manifest(folder, manifest_sha256)
        if manifest["id"] != checkpoint_id or expected_id(manifest) != checkpoint_id:
            raise RefusedCheckpointError(
                f"the manifest is that of {manifest['id']}, its weights give {expected_id(manifest)}", where=str(folder)
            )
        self._check_files(folder, manifest)
        return StoredCheckpoint(folder, manifest)

    def _manifest(self, folder: Path, manifest_sha256: str | None) -> dict[str, Any]:
        if folder.is_symlink() or not folder.is_dir():
            raise RefusedCheckpointError("not a real folder", where=str(folder))
        path = folder / MANIFEST_FILE
        data = _read_regular(path, _LARGEST_MANIFEST_BYTES)
        if manifest_sha256 is not None and sha256_file(path) != manifest_sha256:
            raise DamagedTransferError(
                "MANIFEST.json is not the one that was announced", where=str(path), fix="publish again"
            )
        try:
            manifest = parse_json(data, str(path))
        except JsonError as error:
            raise DamagedTransferError(error.message, where=error.where, fix="publish again") from error
        problem = next(_manifest_schema().iter_errors(manifest), None)
        if problem is not None:
            at = ".".join(str(part) for part in problem.instance_path)
            raise RefusedCheckpointError(
                f"MANIFEST.json: {at}: {problem.message[:200]}",
                where=str(path),
                fix="trainer and server must run the same version",
            )
        return dict(manifest)

    def _check_files(self, folder: Path, manifest: dict[str, Any]) -> None:
        found = set()
        for entry in os.scandir(folder):
            mode = entry.stat(follow_symlinks=False).st_mode
            allowed = entry.name == MANIFEST_FILE or TRAVELLING.fullmatch(entry.name)
            if not stat.S_ISREG(mode) or not allowed:
                raise RefusedCheckpointError(
                    f"{entry.name!r} must not be in a published checkpoint",
                    where=str(folder),
                    fix="publish sends only what may travel; remove it",
                )
            found.add(entry.name)
        extra = found - set(manifest["files"]) - {MANIFEST_FILE}
        if extra:
            raise RefusedCheckpointError(f"the manifest does not name {sorted(extra)[0]!r}", where=str(folder))
        problems = file_problems(folder, manifest["files"])
        if problems:
            raise DamagedTransferError(
                f"{len(problems)} file(s) differ from the manifest: {problems[0]}",
                where=str(folder),
                fix="publish again",
            )
        for name in _CHECKED_JSON:
            if name in manifest["files"]:
                _check_json(folder / name)
        if "tokenizer.json" not in manifest["files"]:
            raise RefusedCheckpointError("there is no tokenizer.json among its files", where=str(folder))

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
        write_json(self.folder / "bad" / f"{checkpoint_id}.json", doc)
        for folder in (self.incoming(checkpoint_id), self.folder / checkpoint_id):
            if os.path.lexists(folder):
                self.discard(folder)

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


@cache
def _manifest_schema() -> "Any":  # jsonschema_rs gives its validators no public type
    return jsonschema_rs.validator_for(read_json(schema_file("manifest")))


def _read_regular(path: Path, limit_bytes: int) -> bytes:
    """Read a small file that must not be a link. Raises DamagedTransferError when it is missing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise DamagedTransferError(f"cannot be read: {error.strerror}", where=str(path), fix="publish again") from error
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > limit_bytes:
            raise RefusedCheckpointError("not a regular file of a sane size", where=str(path))
        return file.read(limit_bytes)


def _check_json(path: Path) -> None:
    """Refuse fields that make libraries run or fetch code, at any depth. Raises RefusedCheckpointError."""
    try:
        doc = parse_json(_read_regular(path, _LARGEST_JSON_BYTES), str(path))
    except JsonError as error:
        raise RefusedCheckpointError(error.message, where=error.where) from error
    waiting = [doc]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
            bad = [
                key for key, value in part.items() if _REFUSED_FIELDS.fullmatch(key) and value not in (None, False, "")
            ]
            if bad:
                raise RefusedCheckpointError(
                    f"{path.name} sets {bad[0]!r}, which can make a library run or fetch code",
                    where=str(path),
                    fix="remove the field before training from this model",
                )
