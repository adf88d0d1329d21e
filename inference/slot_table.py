"""Which checkpoints are in memory, which one serves, who uses them (inside the inference server; torch-free).

A look-up and its use-count are one step under one lock, so a request keeps the model it began with however often the
serving one
changes meanwhile. Loaded slots beyond `max_loaded` that nobody uses are dropped, least recently used first; serving and
previous stay longest.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.errors import NotFoundError, OverloadedError

if TYPE_CHECKING:  # the slot's module imports torch; the table only counts
    from inference.model_slot import ModelSlot

SERVING_ALIAS = "dropforge"


class ModelNotLoadedError(NotFoundError):
    """The id is not in memory; it may be on disk."""

    slug = "model_not_found"


class SlotTable:
    """Thread-safe; slots are built elsewhere and handed in."""

    def __init__(self, max_loaded: int) -> None:
        self._max_loaded = max_loaded
        self._lock = threading.Lock()
        self._slots: dict[str, ModelSlot] = {}
        self._serving: str | None = None

    @property
    def serving_id(self) -> str | None:
        return self._serving

    def serving_slot(self) -> "ModelSlot | None":
        with self._lock:
            return self._slots.get(self._serving) if self._serving else None

    def loaded_ids(self) -> list[str]:
        with self._lock:
            return sorted(self._slots)

    def uses(self) -> dict[str, int]:
        with self._lock:
            return {slot.id: slot.uses for slot in self._slots.values()}

    def get(self, checkpoint_id: str) -> "ModelSlot | None":
        with self._lock:
            return self._slots.get(checkpoint_id)

    @contextmanager
    def using(self, name: str) -> "Iterator[ModelSlot]":
        """The slot that `name` (an id or the alias) means now, kept in memory for the length of the block.

        Raises:
            OverloadedError: the alias is asked for and nothing serves yet. ModelNotLoadedError: the id is not in
            memory.
        """
        slot = self.acquire(name)
        try:
            yield slot
        finally:
            self.release(slot)

    def acquire(self, name: str) -> "ModelSlot":
        """Like `using`, for callers whose block does not end with theirs; every acquire needs its release."""
        with self._lock:
            wanted = self._serving if name == SERVING_ALIAS else name
            if wanted is None:
                raise OverloadedError("no model serves yet", fix="publish one: python -m inference.publish ID")
            slot = self._slots.get(wanted)
            if slot is None:
                raise ModelNotLoadedError(f"the model {name!r} is not loaded")
            slot.uses += 1
            slot.last_used_s = time.monotonic()
            return slot

    def release(self, slot: "ModelSlot") -> None:
        with self._lock:
            slot.uses -= 1
            self._evict(())

    def put(self, slot: "ModelSlot") -> None:
        """Add a loaded slot that does not serve (yet)."""
        with self._lock:
            slot.last_used_s = time.monotonic()
            self._slots[slot.id] = slot
            self._evict((slot.id,))

    def serve(self, slot: "ModelSlot") -> None:
        """Add the slot and let the alias mean it from now on, in one step: in two it could be dropped between them."""
        with self._lock:
            slot.last_used_s = time.monotonic()
            self._slots[slot.id] = slot
            self._serving = slot.id
            self._evict(())

    def forget(self, checkpoint_id: str) -> None:
        """Drop a slot that must not serve; requests that use it finish."""
        with self._lock:
            if checkpoint_id != self._serving:
                self._slots.pop(checkpoint_id, None)

    def _evict(self, spared: tuple[str, ...]) -> None:
        idle = [s for s in self._slots.values() if s.uses == 0 and s.id != self._serving and s.id not in spared]
        idle.sort(key=lambda slot: slot.last_used_s)
        for slot in idle[: max(0, len(self._slots) - self._max_loaded)]:
            del self._slots[slot.id]
