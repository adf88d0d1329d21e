"""Faults that a trainer meets on marked rows: put this folder on PYTHONPATH and python loads it before anything else.

Reads    $POISON: JSON, kind -> list of rows as token ids; nan and inf spoil loss and gradient, spike lifts the loss
         after twelve steps, memory fails as torch's allocator does, hang sleeps
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

_TARGET = "trainer.engine"
_CALM_STEPS = 12
_MARKED = {kind: {tuple(row) for row in rows} for kind, rows in json.loads(os.environ.get("POISON", "{}")).items()}


class _Patcher(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets the real module load, then wraps Engine.loss."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != _TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            self._real = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: Any) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        _wrap(module.Engine)


def _wrap(engine_class: Any) -> None:
    real = engine_class.loss
    calm = [0]

    def loss(self: Any, batch: Any, *, scale: float, backward: bool = True) -> Any:
        documents = {tuple(d.tolist()) for d in np.split(batch.ids_T, np.cumsum(batch.layout.lengths)[:-1])}
        kinds = {kind for kind, rows in _MARKED.items() if rows & documents}
        if "memory" in kinds:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory (planted)")
        if "hang" in kinds:
            time.sleep(1e6)
        value = real(self, batch, scale=scale, backward=backward)
        if "inf" in kinds and backward:
            next(p.grad for p in self.trainable.values() if p.grad is not None).fill_(float("inf"))
        if "spike" in kinds:
            calm[0] += 1
            return value + 50.0 * (calm[0] > _CALM_STEPS)
        return value * (float("nan") if "nan" in kinds else 1.0)

    engine_class.loss = loss


sys.meta_path.insert(0, _Patcher())
