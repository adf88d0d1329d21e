"""Taking a published checkpoint into service, or not: the server's half of a deployment (arrow: publisher -> inference
server).

Reads    models_dir/incoming/          Writes  through ModelStore: models_dir/<id>/, current, previous, bad/
Errors   GateFailedError and its kin (the old model goes on serving), StorageError, ConflictError
Effects  one deployment at a time; hashing in the caller's thread, everything with torch on the generation thread
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar  # Any: reports and listings are JSON objects

from core.errors import (
    AnswerNoError,
    DeadlineError,
    DropforgeError,
    GateFailedError,
    ModelError,
    NotFoundError,
    StorageError,
)
from inference.generation import Canary
from inference.inspection import DamagedTransferError, StoredCheckpoint
from inference.metrics import ServerMetrics
from inference.model_slot import GateReport, Loader, ModelSlot, pass_gate
from inference.model_store import ModelStore
from inference.scheduler import Scheduler
from inference.slot_table import SlotTable

logger = logging.getLogger(__name__)
T = TypeVar("T")

_WAIT_FOR_OTHER_S = 120.0
_MOST_LOAD_S = 600.0
_KEEP_FOLDERS = 5


class ConflictError(AnswerNoError):
    """What is asked does not fit what is there now."""

    code = 2104
    slug = "conflict"


class Deployer:
    """Owns the order of deployments. Thread-safe."""

    def __init__(
        self, store: ModelStore, table: SlotTable, scheduler: Scheduler, loader: Loader, metrics: ServerMetrics
    ) -> None:
        self._store = store
        self._table = table
        self._scheduler = scheduler
        self._loader = loader
        self._metrics = metrics
        self._one_at_a_time = threading.Lock()
        self._starting = True

    def start(self) -> None:
        """Serve what `current` names, else `previous`; with neither the server waits for its first deployment."""
        self._store.make_folders()
        with self._turn():
            named = dict.fromkeys((self._store.current(), self._store.previous()))
            serves = any(name is not None and self._try_stored(name) for name in named)
        self._starting = False
        if not serves:
            logger.info("no checkpoint to serve yet; waiting for the first deployment")

    def _try_stored(self, checkpoint_id: str) -> bool:
        try:
            slot = self._load(self._store.read(checkpoint_id), None)
            self._gate(slot, ())
        except DropforgeError as error:
            logger.error("checkpoint %s cannot serve: %s", checkpoint_id, error)
            return False
        if self._store.current() != checkpoint_id:
            self._store.flip(checkpoint_id)
        self._serve(slot)
        return True

    def reload(
        self, checkpoint_id: str, manifest_sha256: str, base_manifest_sha256: str | None, canaries: Sequence[Canary]
    ) -> dict[str, Any]:
        """Verify, load, gate and serve what the publisher sent. Asking for what serves already changes nothing.

        Returns {"id", "previous", "changed", "seconds": {...}, "gate": {...} or null}.

        Raises:
            GateFailedError: and the old model serves. ConflictError: marked bad before. StorageError.
        """
        with self._turn():
            reason = self._store.bad_reason(checkpoint_id, manifest_sha256)
            if reason is not None:
                raise ConflictError(
                    f"this checkpoint failed before and is not tried again: {reason}",
                    where=checkpoint_id,
                    fix="publish another checkpoint",
                )
            try:
                return self._reload(checkpoint_id, manifest_sha256, base_manifest_sha256, canaries)
            except DamagedTransferError:
                self._metrics.deployment("damaged")
                raise
            except (GateFailedError, ModelError) as error:
                self._metrics.deployment("refused")
                self._refuse(checkpoint_id, manifest_sha256, error)
                raise GateFailedError(error.message, where=checkpoint_id, fix=error.fix) from error

    def _reload(
        self, checkpoint_id: str, manifest_sha256: str, base_manifest_sha256: str | None, canaries: Sequence[Canary]
    ) -> dict[str, Any]:
        began = time.perf_counter()
        stored = self._store.take_in(checkpoint_id, manifest_sha256)
        base = None
        if stored.is_adapter:
            base = self._base(stored.base_sha256, base_manifest_sha256)
        hashed = time.perf_counter()
        before = self._table.serving_id
        if before == checkpoint_id:
            return {
                "id": checkpoint_id,
                "previous": self._store.previous(),
                "changed": False,
                "seconds": {},
                "gate": None,
            }
        slot = self._table.get(checkpoint_id) or self._load(stored, base)
        loaded = time.perf_counter()
        report = self._gate(slot, canaries)
        gated = time.perf_counter()
        self._store.flip(checkpoint_id)
        self._serve(slot)
        self._metrics.deployment("served")
        self._tidy()
        seconds = {
            "hash": hashed - began,
            "load": loaded - hashed,
            "gate": gated - loaded,
            "swap": time.perf_counter() - gated,
        }
        return {
            "id": checkpoint_id,
            "previous": before,
            "changed": True,
            "seconds": {k: round(v, 4) for k, v in seconds.items()},
            "gate": asdict(report),
        }

    def _base(self, base_sha256: str, manifest_sha256: str | None) -> StoredCheckpoint | None:
        """The verified base of an adapter; None when it is in memory already, and on disk for the next start."""
        sent = self._store.incoming(f"base-{base_sha256}").exists()
        if self._loader.holds(base_sha256) and base_sha256 in self._store.base_sums() and not sent:
            return None
        return self._store.take_in_base(base_sha256, manifest_sha256)

    def _refuse(self, checkpoint_id: str, manifest_sha256: str, error: DropforgeError) -> None:
        """Remember the verdict. What serves or could be rolled back to is never deleted, whatever somebody sends under
        its id.
        """
        logger.warning("checkpoint %s is refused: %s", checkpoint_id, error)
        self._table.forget(checkpoint_id)
        if checkpoint_id in (self._store.current(), self._store.previous()):
            sent = self._store.incoming(checkpoint_id)
            if sent.exists():
                self._store.discard(sent)
            return
        self._store.mark_bad(checkpoint_id, manifest_sha256, error.message)

    def rollback(self) -> dict[str, Any]:
        """Serve `previous` again; `current` becomes `previous`. Raises ConflictError when there is none."""
        with self._turn():
            target = self._store.previous()
            if target is None or target == self._table.serving_id:
                raise ConflictError("there is no previous checkpoint to go back to", fix="publish the one you want")
            try:
                slot = self._table.get(target) or self._load(self._store.read(target), None)
                self._gate(slot, ())
            except (GateFailedError, ModelError) as error:
                raise ConflictError(
                    f"the previous checkpoint {target} cannot serve: {error.message}", fix="publish the one you want"
                ) from error
            before = self._table.serving_id
            self._store.flip(target)
            self._serve(slot)
            self._metrics.deployment("rolled_back")
            return {"id": target, "previous": before, "changed": True}

    def load_stored(self, checkpoint_id: str) -> None:
        """Bring a checkpoint from models_dir into memory, to be asked by id. Raises NotFoundError."""
        with self._turn():
            if self._table.get(checkpoint_id) is not None:
                return
            if checkpoint_id not in self._store.stored_ids():
                raise NotFoundError(f"the model {checkpoint_id!r} does not exist", fix="GET /v1/models lists them")
            try:
                slot = self._load(self._store.read(checkpoint_id), None)
            except (GateFailedError, ModelError) as error:
                raise NotFoundError(f"the model {checkpoint_id!r} cannot be loaded: {error.message}") from error
            self._table.put(slot)

    def listing(self) -> dict[str, Any]:
        """What GET /v1/checkpoints says: the truth about what is served. While `starting` it is not known yet."""
        loaded, uses, bad = set(self._table.loaded_ids()), self._table.uses(), self._store.bad_marks()
        serving = self._table.serving_id
        rows = [
            {
                "id": i,
                "state": "serving" if i == serving else "loaded" if i in loaded else "stored",
                "requests": uses.get(i, 0),
                "reason": None,
            }
            for i in dict.fromkeys([*self._store.stored_ids(), *sorted(loaded)])
        ]
        rows += [
            {"id": i, "state": "bad", "requests": 0, "reason": m.get("reason")}
            for i, m in bad.items()
            if i not in loaded
        ]
        previous = self._store.previous()
        return {
            "serving": serving,
            "previous": previous if previous != serving else None,
            "checkpoints": rows,
            "starting": self._starting,
            "bases": self._store.base_sums(),
            "free_bytes": self._store.free_bytes(),
        }

    def known_ids(self) -> list[str]:
        """Ids that `model` may name: in memory or on disk."""
        return list(dict.fromkeys([*self._store.stored_ids(), *self._table.loaded_ids()]))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._one_at_a_time.acquire(timeout=_WAIT_FOR_OTHER_S):
            raise ConflictError("another deployment is still under way", fix="ask again when it has ended")
        try:
            yield
        finally:
            self._one_at_a_time.release()

    def _load(self, stored: StoredCheckpoint, base: StoredCheckpoint | None) -> ModelSlot:
        if stored.is_adapter and base is None and not self._loader.holds(stored.base_sha256):
            base = self._store.read_base(stored.base_sha256)
        return _result_of(self._scheduler.run_job(self._loader.load(stored, base)))

    def _gate(self, slot: ModelSlot, canaries: Sequence[Canary]) -> GateReport:
        serving = self._table.serving_slot()
        same_base = serving is not None and serving.stored.base_sha256 == slot.stored.base_sha256
        rival = serving if same_base and serving is not slot else None
        return _result_of(self._scheduler.run_job(pass_gate(slot, canaries, rival)))

    def _serve(self, slot: ModelSlot) -> None:
        self._table.serve(slot)
        self._metrics.serving(slot.id)
        logger.info("serving %s", slot.id)

    def _tidy(self) -> None:
        try:
            self._store.make_room(_KEEP_FOLDERS, set(self._table.loaded_ids()))
        except StorageError:
            logger.exception("old checkpoints could not be removed")


def _result_of(job: "Future[T]") -> T:
    """Wait for work on the generation thread; whatever a candidate makes it raise is a verdict on the candidate.

    Raises:
        DropforgeError: as raised there. DeadlineError: it takes too long. ModelError: anything else.
    """
    try:
        return job.result(_MOST_LOAD_S)
    except DropforgeError:
        raise
    except TimeoutError as error:
        raise DeadlineError(f"loading and trying it took more than {_MOST_LOAD_S:.0f} s") from error
    except Exception as error:  # the edge between a stranger's model and the server
        logger.exception("a candidate failed")
        raise ModelError(f"it fails when it is used: {type(error).__name__}: {str(error)[:200]}") from error
