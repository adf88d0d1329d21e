"""Whether this engine computes what the model's own forward computes (inside the inference server).

transformers hands every attention what its architecture needs: sinks, windows, chunks, biases. What this engine does
not know of would be passed over in silence and give other tokens than `generate`, so each loaded model reads and
decodes a few tokens here, compared with its own eager attention over the same layers. Shapes: R rows, V vocabulary.
"""

import statistics
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from core.errors import ModelError
from inference.engine.attention import NAME, packed_attention, register
from inference.engine.runner import Runner
from inference.generation import Chunk

TOKENS = 16  # fewer than a tile: no prefix of them is kept. The check takes 0.06 s of 29 M weights
_DECODED = 2  # of these; what does not reach the keys and values of the context is seen here
# Share of the logits' spread. Rounding gave less than 1e-6 in float32 for twenty tiny architectures, the least that
# wrong attention gave was 2e-2 (bloom with the weights it starts from).
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_HALF = 0.2


@dataclass(slots=True)
class _Windows:
    """The windows (None: without one) of the masks that a model asked for in one pass, and those its attentions got."""

    masks: set[int | None] = field(default_factory=set)
    told: set[int | None] = field(default_factory=set)


def check(network: PreTrainedModel, runner: Runner, ids: Sequence[int]) -> Generator[None, None, None]:
    """Compare both ways through the network for a text, in slices.

    Args:
        ids: at least three tokens; TOKENS are looked at.

    Raises:
        ModelError: they differ by more than rounding, or would in longer contexts.
    """
    ids = list(ids[: min(TOKENS, runner.max_context_tokens)])
    own_RV = _own_logits(network, ids)
    yield
    if not bool(own_RV.isfinite().all()):
        return  # broken weights, which the gate names
    found_RV, windows = yield from _served_logits(runner, ids)
    problem = _unseen(network, windows)
    apart = _apart(found_RV, own_RV)
    if problem is None and not apart <= _TOLERANCE.get(network.dtype, _TOLERANCE_HALF):  # also true for NaN
        problem = f"this engine gives other logits than its own forward does (apart by {apart:.1%} of their spread)"
    if problem is not None:
        raise ModelError(
            f"the architecture {network.config.model_type!r} cannot be served: {problem}",
            where=type(network).__name__,
            fix="train and publish another base model",
        )


def _unseen(network: PreTrainedModel, windows: _Windows) -> str | None:
    """Why contexts longer than these few tokens would go wrong; None when nothing speaks for that."""
    layers = getattr(network.config.get_text_config(), "layer_types", None) or ()
    if "chunked_attention" in layers:
        return "it attends in chunks"
    unknown = windows.told - windows.masks if windows.masks else set()
    if "sliding_attention" in layers:
        unknown |= windows.masks - windows.told - {None}
    return "only its masks know of its window" if unknown else None


@torch.inference_mode()
def _own_logits(network: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """[R, V]: the model's own forward, with the attention that every architecture brings as `eager`."""
    network.set_attn_implementation("eager")
    try:
        logits_TV: torch.Tensor = network(input_ids=torch.tensor([ids], device=network.device), use_cache=False).logits[
            0
        ]
    finally:
        network.set_attn_implementation(NAME)
    return logits_TV[-_DECODED - 1 :].float().cpu()


def _served_logits(runner: Runner, ids: list[int]) -> Generator[None, None, tuple[torch.Tensor, _Windows]]:
    """[R, V]: after the prompt, and after each token that is decoded; what the prompt's pass asked for."""
    context, _ = runner.open(())
    try:
        with _recorded() as windows:
            rows = [runner.step({}, [Chunk(context, ids[:-_DECODED], last=True)]).logits[context]]
        for token in ids[-_DECODED:]:
            yield
            rows.append(runner.step({context: token}, []).logits[context])
    finally:
        runner.close(context)
    return torch.stack([torch.from_numpy(row) for row in rows]), windows


def _apart(found_RV: torch.Tensor, own_RV: torch.Tensor) -> float:
    """Distance of the logits over their spread, in the middle row: a token that went to another expert is rounding."""
    spread_R = (own_RV - own_RV.mean(-1, keepdim=True)).norm(dim=-1).clamp_min(1e-9)
    return float(statistics.median(((found_RV - own_RV).norm(dim=-1) / spread_R).tolist()))


@contextmanager
def _recorded() -> Iterator[_Windows]:
    """Listen to what goes through transformers' interfaces; a model that is walked layer by layer asks for nothing.

    Nothing else may be computed meanwhile: transformers keeps one registry a process.
    """
    windows = _Windows()

    def mask(*_args: object, local_size: int | None = None, **_kwargs: object) -> None:
        windows.masks.add(local_size)

    def attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:  # whatever packed_attention takes
        windows.told.add(kwargs.get("sliding_window"))
        return packed_attention(*args, **kwargs)

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    try:
        yield windows
    finally:
        register()
