"""Looking at what the publisher sent before anything loads it (arrow: publisher -> inference server).

Reads    models_dir/incoming/<id>/, models_dir/<id>/          Writes  nothing
Units    sizes in bytes
Errors   RefusedCheckpointError (unfit whatever the transfer did), DamagedTransferError (bytes differ: send it again)
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any  # manifests are JSON documents of config/schemas/manifest.schema.json

import jsonschema_rs

from core.atomic import parse_json, read_json, sha256_file
from core.checkpoints import MANIFEST_FILE, TRAVELLING, file_problems, weights_sha256
from core.errors import GateFailedError, JsonError
from core.paths import schema_file

PARTIAL_DIR = ".rsync-partial"  # where rsync keeps a file that broke off
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


def read_manifest(folder: Path, manifest_sha256: str | None) -> dict[str, Any]:
    """Read and check a published MANIFEST.json; with a sum given it must be that one.

    Raises:
        DamagedTransferError: missing, cut or another one. RefusedCheckpointError: not of our schema.
    """
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


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Hold a folder to its manifest: nothing but the named, allowed, regular files, every byte as announced.

    Raises:
        RefusedCheckpointError: something that may not travel. DamagedTransferError: bytes differ.
    """
    found = set()
    with os.scandir(folder) as entries:
        listed = list(entries)
    if any(entry.name == PARTIAL_DIR for entry in listed):
        raise DamagedTransferError("the transfer was not finished", where=str(folder), fix="publish again")
    for entry in listed:
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
    adapter = found & {"adapter_config.json", "adapter_model.safetensors"}
    if len(adapter) == 1 or (adapter and "model.safetensors" in found):
        # transformers follows an adapter_config.json to whatever folder it names
        raise RefusedCheckpointError("half an adapter, or an adapter inside a whole model", where=str(folder))
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
