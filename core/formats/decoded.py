"""What Arrow columns come to as rows, where they themselves are far smaller (arrow: intake).

A dictionary, a view and a list may repeat one value without end; a null takes no byte at all.

Units    bytes; a value counts 8 for its place beside what it holds
"""

import importlib
from collections.abc import Iterator
from typing import Any  # pyarrow has no types

import numpy as np

from core.formats.rows import FormatError, RowProblem

_PLACE = 8
_REPEATING = ("run_end_encoded", "list_view", "large_list_view", "union")  # no writer of text needs them


def pieces(batch: Any, most: int) -> Iterator[tuple[Any, int]]:  # pyarrow record batches
    """A record batch in slices of at most `most` bytes, or of one row, each with its size. Raises FormatError."""
    size = _PLACE * batch.num_rows + sum(decoded_bytes(column) for column in batch.columns)
    if size <= most or batch.num_rows <= 1:
        yield batch, size
        return
    middle = batch.num_rows // 2
    yield from pieces(batch.slice(0, middle), most)
    yield from pieces(batch.slice(middle), most)


def decoded_bytes(array: Any) -> int:  # any pyarrow array
    """Size of a valid array's values when each is written out. Raises FormatError for a type that is not read."""
    pyarrow = importlib.import_module("pyarrow")  # loaded by whoever made the array
    types, kind, own = pyarrow.types, array.type, _PLACE * len(array)
    if isinstance(array, pyarrow.ExtensionArray):
        return decoded_bytes(array.storage)
    if types.is_dictionary(kind):
        return own + _repeated_bytes(array, types)
    if types.is_struct(kind):
        return own + sum(decoded_bytes(field) for field in array.flatten())
    if types.is_map(kind):
        first, last = (array.offsets[at].as_py() for at in (0, -1)) if len(array) else (0, 0)
        return own + sum(decoded_bytes(part.slice(first, last - first)) for part in (array.keys, array.items))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return own + decoded_bytes(array.flatten())
    if types.is_string_view(kind) or types.is_binary_view(kind):
        lengths = np.frombuffer(array.buffers()[1], dtype=np.int32)[::4] if len(array) else np.zeros(0)
        return own + int(lengths[array.offset : array.offset + len(array)].sum(dtype=np.int64))
    if any(name in str(kind).split("<", 1)[0] for name in _REPEATING):
        words = f"a column is of the type {str(kind)[:60]}, which is not read"
        raise FormatError(RowProblem("spec_mismatch", words, fix="cast the column to a plain list or text"))
    return own + int(array.nbytes)


def _repeated_bytes(array: Any, types: Any) -> int:  # a pyarrow DictionaryArray, pyarrow.types
    """What a dictionary's values come to where they stand."""
    values = array.dictionary
    kind = values.type
    wide = types.is_large_string(kind) or types.is_large_binary(kind)
    if wide or types.is_string(kind) or types.is_binary(kind):
        ends = np.frombuffer(values.buffers()[1], dtype=np.int64 if wide else np.int32) if len(values) else np.zeros(0)
        at = array.indices.drop_null().to_numpy().astype(np.int64) + values.offset
        return int((ends[at + 1] - ends[at]).sum(dtype=np.int64))
    if types.is_primitive(kind):
        return _PLACE * len(array)
    return len(array) * decoded_bytes(values)  # each may be the longest
