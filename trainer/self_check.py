"""Before a model is trained: does our packed loss equal its own loss, one row at a time? (inside the trainer's arrow)

A model whose attention does not come from transformers' AttentionInterface, or whose head does more than one product,
would be trained on something else than it is served with, without any error. Two short rows tell.

Errors   ModelError naming both losses
"""

import numpy as np
import torch

from core.errors import ModelError
from trainer.attention import NAME
from trainer.engine import Engine
from trainer.packing import Row, pack

_LENGTHS = (11, 7)  # different, so that they share a rectangle with padding, or none
# Relative. Half precision rounds logits to three digits; a leak or a missing softcap is off by far more than either.
_TOLERANCE, _HALF_TOLERANCE = 2e-3, 2e-2


def refuse_wrong_loss(engine: Engine) -> None:
    """Compare both losses on two made-up rows. Costs two forward passes of 18 tokens; changes nothing."""
    generator = np.random.default_rng(0)
    vocabulary = engine.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]  # transformers models have it
    rows = [Row(generator.integers(0, vocabulary, n).astype(np.int32), np.ones(n, np.bool_)) for n in _LENGTHS]
    engine.model.eval()
    try:
        ours = sum(float(engine.loss(batch, scale=1.0, backward=False)) for batch in pack(rows, sum(_LENGTHS)))
        theirs = _own_loss(engine, rows)
    finally:
        engine.model.train()
    tolerance = _TOLERANCE if engine.dials.compute_dtype == torch.float32 else _HALF_TOLERANCE
    if not abs(ours - theirs) <= tolerance * abs(theirs):
        raise ModelError(
            f"packed rows give this model a loss of {ours:.4f}, single rows by its own code {theirs:.4f}",
            where=type(engine.model).__name__,
            fix="use an architecture whose attention goes through transformers' AttentionInterface",
        )


def _own_loss(engine: Engine, rows: list[Row]) -> float:
    """The summed loss by the model's whole forward pass and eager attention in fp32, one row at a time."""
    total = 0.0
    engine.model.set_attn_implementation("eager")  # type: ignore[operator]  # transformers models have it
    try:
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64)).to(engine.device)[None]
            with torch.no_grad():
                logits = engine.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    finally:
        engine.model.set_attn_implementation(NAME)  # type: ignore[operator]  # the same
    return total
