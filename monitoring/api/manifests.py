"""Manifests of one run, read once each: they never change after their commit (arrow: checkpoints).

Reads    checkpoints/<run>/checkpoint-<step>/MANIFEST.json, checkpoints/<run>/manifests/<id>.json
Errors   none on purpose: a damaged manifest is left out
"""

import os
import re
import threading
from pathlib import Path

from core.atomic import read_json
from core.checkpoints import MANIFEST_FILE
from core.errors import JsonError, NotFoundError, StorageError
from core.paths import Workspace
from monitoring.api.query import Document

_FOLDER = re.compile(r"checkpoint-(0|[1-9][0-9]*)", re.ASCII)
_NEEDED = {"id": str, "step": int, "run": str, "jobs": list, "files": dict}


class Manifests:
    """What is committed and what retention removed. Safe to share by threads."""

    def __init__(self, workspace: Workspace, run: str) -> None:
        self._run_dir = workspace.run_dir(run)
        self._kept_dir = workspace.manifests_dir(run)
        self._run = run
        self._read: dict[Path, tuple[int, Document]] = {}
        self._lock = threading.Lock()

    def committed(self) -> list[Document]:
        """Manifests whose checkpoint folder exists, oldest step first."""
        folders = [self._run_dir / name for name in _names(self._run_dir) if _FOLDER.fullmatch(name)]
        found = self._load([folder / MANIFEST_FILE for folder in folders])
        right = [m for path, m in found if path.parent.name == f"checkpoint-{m['step']}"]
        return sorted(right, key=lambda manifest: int(manifest["step"]))

    def known(self) -> dict[str, Document]:
        """Every manifest by id, those of removed checkpoints included."""
        kept = [self._kept_dir / name for name in _names(self._kept_dir) if name.endswith(".json")]
        return {m["id"]: m for _, m in self._load(kept)} | {m["id"]: m for m in self.committed()}

    def resolve(self, wanted: str) -> Document:
        """Find by id, `checkpoint-<step>`, step, or an unambiguous start of the id. Raises NotFoundError."""
        known = self.known()
        exact = [m for m in known.values() if wanted in (m["id"], str(m["step"]), f"checkpoint-{m['step']}")]
        found = exact or [m for key, m in known.items() if wanted and key.startswith(wanted)]
        if len(found) != 1:
            problem = "no checkpoint" if not found else "more than one checkpoint"
            raise NotFoundError(f"{problem} {wanted[:60]!r}", fix="dropforge checkpoints lists them")
        return found[0]

    def _load(self, paths: list[Path]) -> list[tuple[Path, Document]]:
        found = []
        with self._lock:
            for path in paths:
                manifest = self._one(path)
                if manifest is not None:
                    found.append((path, manifest))
        return found

    def _one(self, path: Path) -> Document | None:
        try:
            changed_ns = path.stat().st_mtime_ns
            kept = self._read.get(path)
            if kept and kept[0] == changed_ns:
                return kept[1]
            manifest = read_json(path)
        except (OSError, JsonError, StorageError):
            self._read.pop(path, None)
            return None
        if manifest.get("run") != self._run or not all(
            isinstance(manifest.get(key), kind) for key, kind in _NEEDED.items()
        ):
            return None
        self._read[path] = (changed_ns, manifest)
        return manifest


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
