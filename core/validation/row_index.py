"""The index of all rows that were ever let into the queue, on the disk (background child -> gates with a limit, check).

Reads    status/row_index/<job_id or pack-*>/<part>/     Writes   the same, built aside, fsynced and renamed: a folder
                                                                  that has its final name is whole
Errors   OSError, StorageError of the disk; a damaged folder is left out and listed, never raised
Used by  core.daemon.audit_worker, its one writer, which makes it again from the job folders when it is lost or damaged
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from core.atomic import fsync_tree, rename_durable
from core.errors import JsonError
from core.validation.sketches import PART_ROWS, Part

_SMALL_ROWS = 1_024  # folders below this are put together, so that thousands of small files stay a few folders
_MANY_SMALL = 64
_PACK = "pack-"


class RowIndex:
    """The parts of one index folder.

    Attributes:
        damaged: folders that cannot be read; `repair` removes them, so that their jobs are indexed again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[str, list[Part]] = {}
        self.damaged: list[Path] = []
        self._read()

    def _read(self) -> None:
        self._parts, self.damaged = {}, []
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        for name in sorted(name for name in names if not name.startswith(".")):
            try:
                self._parts[name] = [Part.open(folder) for folder in sorted((self._folder / name).iterdir())]
            except (OSError, EOFError, ValueError, LookupError, TypeError, JsonError):
                self.damaged.append(self._folder / name)

    def __iter__(self) -> Iterator[Part]:
        for parts in self._parts.values():
            yield from parts

    @property
    def job_ids(self) -> set[str]:
        """The jobs whose rows are in the index, those without any row too."""
        return {job_id for part in self for job_id in part.job_ids} | self._parts.keys()

    def repair(self) -> None:
        """Remove what is damaged, and what was never finished."""
        for path in [*self.damaged, *self._folder.glob(".*")]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:  # not ours, but it would stop the child at every start
                path.unlink()
        self.damaged = []

    def aside(self, name: str) -> Path:
        """A new folder in which parts are built."""
        folder = self._folder / f".{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def keep(self, built: Path) -> None:
        """Take in what was built aside, all of it at once. Raises StorageError, OSError."""
        fsync_tree(built)
        home = built.with_name(built.name.removeprefix("."))
        rename_durable(built, home)
        self._parts[home.name] = [Part.open(folder) for folder in sorted(home.iterdir())]

    def compact(self) -> None:
        """Put small folders together when they are many. Rows that a crash leaves in two folders do no harm."""
        small = {name: parts[0] for name, parts in self._parts.items() if len(parts) == 1 and _is_small(parts[0])}
        if len(small) < _MANY_SMALL:
            return
        for names in _groups(small):
            built = self.aside(f"{_PACK}{secrets.token_hex(8)}")
            Part.joined([small[name] for name in names]).save(built / "000000")
            self.keep(built)
            for name in names:
                shutil.rmtree(self._folder / name)
        self._read()


def _is_small(part: Part) -> bool:
    return len(part) < _SMALL_ROWS


def _groups(parts: dict[str, Part]) -> Iterator[list[str]]:
    """Names whose rows together fit into one part."""
    group: list[str] = []
    rows = 0
    for name, part in parts.items():
        if rows + len(part) > PART_ROWS:
            yield group
            group, rows = [], 0
        group.append(name)
        rows += len(part)
    yield group
