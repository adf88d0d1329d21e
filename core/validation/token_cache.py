"""The tokens and label masks of a job's training rows, made once by the gate and read by the trainer (queue, trainer).

Reads    <job>/tokens/           Writes  the same, built aside in `.tokens.tmp` and renamed when complete
Format   tokens.json {"version", "fingerprint", "rows", "tokens", "trained", ...}; ids.npy int32 and mask.npy bool,
         all rows end to end; offsets.npy int64 [rows + 1]; rows.npy uint32, 0-based row numbers of the file;
         hashes.npy S16, first 16 bytes of each row's SHA-256
Errors   DataError when the arrays and tokens.json disagree; OSError of the disk
Effects  no fsync: a damaged or missing cache is built again from the data file
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO  # JSON values

import numpy as np
from numpy.typing import NDArray

from core.atomic import read_json, write_json
from core.chat_templates import Encoded
from core.errors import DataError, JsonError, StorageError

VERSION = 1
HASH_DTYPE = np.dtype("S16")
_DTYPES = {
    "ids": np.dtype("<i4"),
    "mask": np.dtype("?"),
    "offsets": np.dtype("<i8"),
    "rows": np.dtype("<u4"),
    "hashes": HASH_DTYPE,
}


class TokenCache:
    """An open cache; arrays are mapped, not loaded.

    Attributes:
        fingerprint: equals `ChatEncoder.fingerprint(max_length)` when ids and masks are still valid.
        lengths: tokens of each row, int64 [rows].
        row_numbers: 0-based row numbers in the data file, uint32 [rows].
        hashes: S16 [rows].
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        self.head = head
        self.fingerprint: str = head["fingerprint"]
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _DTYPES}
        if any(arrays[name].dtype != dtype for name, dtype in _DTYPES.items()):
            raise DataError("the token cache has arrays of another kind", where=str(folder))
        self._ids: NDArray[np.int32] = arrays["ids"]
        self._mask: NDArray[np.bool_] = arrays["mask"]
        self._offsets: NDArray[np.int64] = np.array(arrays["offsets"])
        self.row_numbers: NDArray[np.uint32] = arrays["rows"]
        self.hashes: NDArray[np.bytes_] = arrays["hashes"]
        self.lengths: NDArray[np.int64] = np.diff(self._offsets)
        whole = len(self._ids) == len(self._mask) == self._offsets[-1] == head["tokens"]
        if not whole or len(self.row_numbers) != len(self.lengths) or len(self.hashes) != len(self.lengths):
            raise DataError("the token cache is incomplete", where=str(folder))

    @classmethod
    def open(cls, folder: Path) -> "TokenCache":
        """Open a cache.

        Raises:
            DataError: missing, of another version, or damaged.
        """
        try:
            head = read_json(folder / "tokens.json")
            if head.get("version") != VERSION:
                raise DataError(f"token cache of version {head.get('version')}", where=str(folder))
            return cls(folder, head)
        except (OSError, ValueError, LookupError, StorageError, JsonError) as error:
            raise DataError(f"the token cache cannot be read: {error}", where=str(folder)) from error

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, index: int) -> NDArray[np.int32]:
        """Token ids of the index-th training row."""
        return self._ids[self._offsets[index] : self._offsets[index + 1]]

    def mask(self, index: int) -> NDArray[np.bool_]:
        """True where the index-th training row is trained."""
        return self._mask[self._offsets[index] : self._offsets[index + 1]]


class _GrowingArray:
    """A .npy file that is appended to; its header is written again at the end (numpy leaves room for the length)."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype = dtype
        self.length = 0
        self._write_header()

    def _write_header(self) -> None:
        self._file.seek(0)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.length += len(values)

    def close(self) -> None:
        self._write_header()
        self._file.close()


class TokenCacheWriter:
    """Writes a cache some rows at a time; nothing exists under the final name before `finish`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        self._arrays = {name: _GrowingArray(self._aside / f"{name}.npy", dtype) for name, dtype in _DTYPES.items()}
        self._arrays["offsets"].append(np.zeros(1, np.int64))
        self._tokens = self._trained = 0

    def add(self, encoded: Encoded, row_number: int, row_hash: bytes) -> None:
        """Append one training row."""
        self.extend([encoded], [row_number], [row_hash])

    def extend(self, encoded: Sequence[Encoded], row_numbers: Sequence[int], row_hashes: Sequence[bytes]) -> None:
        """Append training rows."""
        if not encoded:
            return
        lengths = [len(row.ids) for row in encoded]
        ends = self._tokens + np.cumsum(lengths, dtype=np.int64)
        masks = np.concatenate([row.mask for row in encoded])
        self._tokens = int(ends[-1])
        self._trained += int(masks.sum())
        self._arrays["ids"].append(np.concatenate([row.ids for row in encoded]))
        self._arrays["mask"].append(masks)
        self._arrays["offsets"].append(ends)
        self._arrays["rows"].append(np.array(row_numbers))
        self._arrays["hashes"].append(np.array([digest[:16] for digest in row_hashes], dtype=HASH_DTYPE))

    def finish(self, fingerprint: str, **facts: object) -> None:
        """Complete the cache under its final name, replacing an older one."""
        rows = self._arrays["rows"].length
        for array in self._arrays.values():
            array.close()
        head = {"version": VERSION, "fingerprint": fingerprint, "rows": rows}
        head |= {"tokens": self._tokens, "trained": self._trained} | facts
        write_json(self._aside / "tokens.json", head, durable=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._aside.replace(self._folder)

    def abandon(self) -> None:
        """Close and remove what was written."""
        for array in self._arrays.values():
            array.close()
        shutil.rmtree(self._aside, ignore_errors=True)
