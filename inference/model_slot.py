"""One checkpoint in memory, and the gate it passes before it may answer (inside the inference server).

Everything here runs on the generation thread, as generators that yield between slices, so that streams go on meanwhile.
Units: losses in nats per trained token, times in seconds.
Errors   ModelError (cannot be loaded), GateFailedError (loaded, but must not serve)
"""

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from transformers import PreTrainedModel

from core.chat_templates import ChatEncoder
from core.errors import GateFailedError, ModelError
from core.status import iso_now
from core.template_text import TemplateRefusedError
from inference.constrained import Constraints
from inference.engine.loading import context_limit, load_base, weights_of, with_adapter
from inference.engine.room import tokens_that_fit
from inference.engine.runner import Runner
from inference.engine.self_check import check
from inference.generation import TILE_TOKENS, Canary, Chunk, Model, TokenScore
from inference.inspection import StoredCheckpoint
from inference.token_names import TokenNames
from trainer import profiles

# Each of these tokens is one more step in front of the first answer: 16 of each took most of a deployment.
_CANARY_TOKENS = 8
_RIVAL_TOKENS = 4
_MOST_CANARY_ROW_TOKENS = 512  # of the judge's rows, the shortest first; they too are read before the swap
_CHECK_TEXT = "The quick brown fox jumps over the lazy dog, 3 times a day; then it sleeps. Why? Nobody knows (or asks)!"
_CANARY_CHAT = ({"role": "user", "content": "Say hello."},)
# The judge ran the same weights with other kernels: far above rounding (1e-4 seen), far below what wrong weights give.
_LOSS_TOLERANCE = 0.05
_LOSS_TOLERANCE_SHARE = 0.02
_ABOVE_UNIFORM_NATS = 3.0  # an untrained model scores ln(vocabulary); far above it the weights are garbage
_SLICE_TOKENS = 2 * TILE_TOKENS  # of a row, read in one go: 45 ms of one core for 29 M weights
_SLOWER_LIMIT = 10.0
_MOST_CONTEXT_TOKENS = 32_768
_GAINS_FROM_THREADS = 5_000_000  # weights; below it a second torch thread costs more at its barriers than it saves


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate measured; goes into deploy.json."""

    loss: float | None
    expected_loss: float | None
    canaries: int
    tokens: int
    token_s: float
    text: str


@dataclass(slots=True)
class ModelSlot:
    """A loaded checkpoint. `uses` is counted by the table under its lock."""

    id: str
    stored: StoredCheckpoint
    encoder: ChatEncoder
    model: Model
    network: PreTrainedModel
    base: PreTrainedModel | None  # an adapter's: kept alive, and findable, as long as this slot lives
    constraints: Constraints
    threads: int  # the most that its steps may use
    uses: int = 0
    last_used_s: float = 0.0
    loaded_at: str = field(default_factory=iso_now)
    names: TokenNames = field(init=False)

    def __post_init__(self) -> None:
        self.names = TokenNames(self.encoder)

    def trial(self) -> Runner:
        """The same network with contexts of its own: the slot may be answering requests by its id at this moment."""
        return Runner(self.network, self.model.max_context_tokens, threads=self.threads)


class Loader:
    """Builds slots; bases that live in some slot already are shared, never loaded twice.

    Side effects: torch keeps to one thread but in the steps of a model that is large enough to gain from more.
    """

    def __init__(self, device: str) -> None:
        """Args: device: "cpu", "cuda" or "cuda:N"."""
        self._device = torch.device(device)
        self._threads = torch.get_num_threads()  # what OMP_NUM_THREADS or the machine offers
        torch.set_num_threads(1)
        self._bases: WeakValueDictionary[str, PreTrainedModel] = WeakValueDictionary()

    def holds(self, base_sha256: str) -> bool:
        """True when some slot keeps this base in memory."""
        return base_sha256 in self._bases

    def load(self, stored: StoredCheckpoint, base: StoredCheckpoint | None) -> Generator[None, None, ModelSlot]:
        """Load a verified checkpoint.

        Args:
            base: the verified base of an adapter; None for full weights, or when `holds` says the base is in memory.

        Raises:
            ModelError: it cannot be built, its chat template is refused, or it computes something else here than by
            its own forward.
        """
        _require_profile(stored)
        encoder = _encoder(stored.folder)
        yield
        if not stored.is_adapter:
            shared = None
            network = yield from self._full(stored.folder, stored.weights_sha256)
        else:
            folder = stored.folder if base is None else base.folder  # never read when the base is in memory
            shared = yield from self._full(folder, stored.base_sha256)
            network = with_adapter(shared, stored.folder)
        limit = context_limit(network) or _MOST_CONTEXT_TOKENS
        room = tokens_that_fit(network)
        threads = self._threads if weights_of(network) >= _GAINS_FROM_THREADS else 1
        runner = Runner(network, min(limit, _MOST_CONTEXT_TOKENS, room), room, threads)
        yield from check(network, runner, encoder.encode_text(_CHECK_TEXT))
        constraints = Constraints(encoder, runner.vocabulary)
        return ModelSlot(stored.id, stored, encoder, runner, network, shared, constraints, threads)

    def _full(self, folder: Path, sha256: str) -> Generator[None, None, PreTrainedModel]:
        known = self._bases.get(sha256)
        if known is not None:
            return known
        network = yield from load_base(folder, self._device)
        self._bases[sha256] = network
        return network


def _require_profile(stored: StoredCheckpoint) -> None:
    """What a profile does to prompts and logits while training must be done here too, or not be served at all."""
    name = stored.manifest["profile"]
    if name is not None and name not in profiles.KNOWN:
        raise ModelError(
            f"it was trained with the profile {name!r}, which this server does not know",
            where=str(stored.folder),
            fix="serve it with the version that trained it",
        )


def _encoder(folder: Path) -> ChatEncoder:
    encoder = ChatEncoder.from_folder(folder)
    if encoder.template_source == "replaced":
        raise ModelError(f"its chat template is refused: {encoder.replaced_reason}", where=str(folder))
    if not encoder.eos_ids:
        raise ModelError("its tokenizer has no end token", where=str(folder))
    return encoder


def pass_gate(
    slot: ModelSlot, canaries: Sequence[Canary], rival: ModelSlot | None
) -> Generator[None, None, GateReport]:
    """Let a slot show that it may serve: a rendered prompt, real tokens, finite numbers, the judge's loss, speed.

    Args:
        rival: the serving model when it has the same base; timed at the same moment, since the machine may be busy.

    Raises:
        GateFailedError: saying which check failed and by how much.
    """
    model = slot.trial()
    text, tokens, token_s = yield from _speak(slot.encoder, model, _CANARY_TOKENS)
    losses, expected = yield from _losses(slot.encoder, model, canaries)
    if not losses:
        yield from _plausible(slot.encoder, model)
    for loss, judged in zip(losses, expected, strict=True):
        _compare_losses(loss, judged)
    if rival is not None:
        _, _, rival_s = yield from _speak(rival.encoder, rival.trial(), _RIVAL_TOKENS)
        if token_s > _SLOWER_LIMIT * rival_s:
            raise GateFailedError(f"{token_s * 1e3:.1f} ms a token; the serving model needs {rival_s * 1e3:.1f} ms now")
    return GateReport(_mean(losses), _mean(expected), len(losses), tokens, token_s, text)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _compare_losses(loss: float, expected: float) -> None:
    room = _LOSS_TOLERANCE + _LOSS_TOLERANCE_SHARE * abs(expected)
    if not abs(loss - expected) <= room:  # also true for NaN
        raise GateFailedError(
            f"canary loss {loss:.4f} where the judge measured {expected:.4f}: not the weights that were judged"
        )


def _speak(encoder: ChatEncoder, model: Model, tokens: int) -> Generator[None, None, tuple[str, int, float]]:
    """Greedy tokens from a rendered chat. Returns the text, how many tokens, the fewest seconds one took."""
    try:
        prompt = encoder.encode_prompt(_CANARY_CHAT)
    except TemplateRefusedError as error:
        raise GateFailedError(f"its chat template cannot render a question: {error.message}") from error
    context, _ = model.open(())
    produced: list[int] = []
    times: list[float] = []
    try:
        logits_V = model.step({}, [Chunk(context, prompt, last=True)]).logits[context]
        while True:
            if not math.isfinite(float(logits_V.min())) or not math.isfinite(float(logits_V.max())):
                raise GateFailedError("it computes numbers that are not finite (NaN or infinity)")
            produced.append(int(logits_V.argmax()))
            if len(produced) == tokens:
                break
            yield
            began = time.perf_counter()
            logits_V = model.step({context: produced[-1]}, []).logits[context]
            times.append(time.perf_counter() - began)
    finally:
        model.close(context)
    ends = [place for place, token in enumerate(produced) if token in encoder.eos_ids]
    text = encoder.decode(produced[: ends[0]] if ends else produced)
    return text, len(produced), min(times)


def _losses(
    encoder: ChatEncoder, model: Model, canaries: Sequence[Canary]
) -> Generator[None, None, tuple[list[float], list[float]]]:
    """Losses of the canaries here and as judged; a row the judge cut short is left out, and long ones after others."""
    losses: list[float] = []
    expected: list[float] = []
    read = 0
    rows = [(encoder.encode_row(canary.row), canary) for canary in canaries]
    for encoded, canary in sorted(rows, key=lambda row: len(row[0].ids)):
        trained = encoded.mask.tolist()[1:]
        too_long = len(encoded.ids) > model.max_context_tokens
        if too_long or canary.tokens not in (None, sum(trained)):
            continue
        read += len(encoded.ids)
        if losses and read > _MOST_CANARY_ROW_TOKENS:
            break
        scores = yield from _scores(model, encoded.ids.tolist())
        nats = [-s.logprob for s, counts in zip(scores, trained, strict=False) if s is not None and counts]
        losses.append(sum(nats) / len(nats) if nats else math.nan)
        expected.append(canary.loss)
    return losses, expected


def _plausible(encoder: ChatEncoder, model: Model) -> Generator[None, None, None]:
    """Without rows of the judge: the model must not be surer of wrong tokens than one that knows nothing."""
    row = {"messages": [*_CANARY_CHAT, {"role": "assistant", "content": "Hello."}]}
    ids = encoder.encode_row(row).ids.tolist()
    scores = yield from _scores(model, ids)
    loss = sum(-s.logprob for s in scores if s is not None) / max(1, len(ids) - 1)
    uniform = math.log(model.vocabulary)
    if not loss <= uniform + _ABOVE_UNIFORM_NATS:  # also true for NaN
        raise GateFailedError(f"loss {loss:.1f} on a greeting; knowing nothing gives {uniform:.1f}: garbage weights")


def _scores(model: Model, ids: Sequence[int]) -> Generator[None, None, list[TokenScore | None]]:
    """The log-probability of each token but the first, read in slices: streams go on between them."""
    context, _ = model.open(())
    targets = [*ids[1:], None]
    scores: list[TokenScore | None] = []
    try:
        for first in range(0, len(ids), _SLICE_TOKENS):
            part = slice(first, first + _SLICE_TOKENS)
            result = model.step({}, [Chunk(context, ids[part], last=False, targets=targets[part])])
            scores += result.scores[context]
            yield
    finally:
        model.close(context)
    return scores


def pick_device() -> str:
    """The first CUDA device when torch sees one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
