"""One packed forward pass: decode tokens of all contexts and prompt chunks in the same matrix products (inside the
inference server).

The only thread that may call this is the generation thread: a second thread in torch opens a second OpenMP team and
slows both.
Units: lengths in tokens, log-probabilities in nats.
"""

import itertools
import time
from collections import OrderedDict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from inference.engine.attention import ChunkPart, ShelfPart, StepPlan
from inference.engine.cache import SHORTEST_SHELF, Block, KeyValueMemory
from inference.engine.decoder import forward_of
from inference.engine.layers import rows_computed
from inference.engine.threads import ThreadChoice
from inference.generation import TILE_TOKENS, Chunk, StepResult, TokenScore

_PREFIX_TOKENS_KEPT = 4096  # of recent prompts; 0.9 GB for a 0.6 B model in float32, 0.1 GB for 29 M parameters


class Runner:
    """A model with its contexts; keeps the contract of `inference.generation.Model`."""

    def __init__(
        self, model: PreTrainedModel, max_context_tokens: int, memory_tokens: int = 1 << 40, threads: int = 1
    ) -> None:
        """Args: threads: the most that torch may use; fewer are used while fewer are faster."""
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._through = forward_of(model)
        self._threads = ThreadChoice(threads)
        self._device = model.device
        self._max_context_tokens = max_context_tokens
        self._memory_tokens = memory_tokens
        self._memory = KeyValueMemory()
        self._handles = itertools.count(1)
        self._prompts: dict[int, list[int]] = {}
        self._prefixes: OrderedDict[tuple[int, ...], Block] = OrderedDict()

    @property
    def max_context_tokens(self) -> int:
        return self._max_context_tokens

    @property
    def memory_tokens(self) -> int:
        return self._memory_tokens

    @property
    def least_tokens(self) -> int:
        return SHORTEST_SHELF

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @torch.inference_mode()
    def open(self, ids: Sequence[int]) -> tuple[int, int]:
        """Begin a context; a prompt that begins like a recent one starts with that part already read."""
        handle = next(self._handles)
        block, shared = self._longest_prefix(ids)
        self._memory.open(handle, block)
        self._prompts[handle] = list(ids[:shared])
        return handle, shared

    def _longest_prefix(self, ids: Sequence[int]) -> tuple[Block, int]:
        best, shared = None, 0
        for known in self._prefixes:
            common = _common(known, ids)
            if common > shared:
                best, shared = known, common
        shared = min(shared, len(ids) - 1) // TILE_TOKENS * TILE_TOKENS
        room = max(len(ids), 1)
        if best is None or not shared:
            return Block(room), 0
        self._prefixes.move_to_end(best)
        return self._prefixes[best].copy_prefix(shared, room), shared

    def _remember(self, prompt: Sequence[int], block: Block) -> None:
        if len(prompt) < TILE_TOKENS:
            return
        self._prefixes[tuple(prompt)] = block
        self._prefixes.move_to_end(tuple(prompt))
        while sum(map(len, self._prefixes)) > min(_PREFIX_TOKENS_KEPT, self._memory_tokens // 8):
            self._prefixes.popitem(last=False)

    @torch.inference_mode()
    def close(self, context: int) -> None:
        self._memory.close(context)
        self._prompts.pop(context, None)

    @torch.inference_mode()
    def step(self, decode: dict[int, int], chunks: Sequence[Chunk]) -> StepResult:
        """One forward pass. Raises ValueError when a decoding context was given no token."""
        self._memory.make_room(decode)
        ids, places, plan, order = self._plan(decode, chunks)
        rows, wants = _rows_wanted(len(order), plan, chunks)
        self._threads.before(len(decode), bool(chunks))
        began = time.monotonic()
        logits_RV = self._forward(ids, places, plan, rows)
        self._threads.after(len(decode), bool(chunks), time.monotonic() - began)
        for shelf_part in plan.shelves:
            shelf_part.shelf.lengths = [length + 1 for length in shelf_part.shelf.lengths]
        result = StepResult()
        decoded = logits_RV[: len(order)].numpy(force=True)
        result.logits = {context: decoded[row] for row, context in enumerate(order)}
        for part, chunk, (first, count) in zip(plan.chunks, chunks, wants, strict=True):
            self._take_chunk(result, part, chunk, logits_RV[first : first + count])
        return result

    def _plan(
        self, decode: dict[int, int], chunks: Sequence[Chunk]
    ) -> tuple[list[int], list[int], StepPlan, list[int]]:
        ids: list[int] = []
        places: list[int] = []
        order: list[int] = []
        plan = StepPlan([], [])
        for shelf in self._memory.decoding():
            if any(context not in decode for context in shelf.contexts):
                raise ValueError("every decoding context needs its token in each step")
            rows_B = torch.arange(len(shelf.lengths), device=self._device)
            lengths_B = torch.tensor(shelf.lengths, device=self._device)
            plan.shelves.append(ShelfPart(len(ids), shelf, rows_B, lengths_B))
            ids += [decode[context] for context in shelf.contexts]
            places += shelf.lengths
            order += shelf.contexts
        for chunk in chunks:
            block = self._memory.blocks[chunk.context]
            plan.chunks.append(ChunkPart(len(ids), len(chunk.ids), block))
            ids += chunk.ids
            places += range(block.length, block.length + len(chunk.ids))
        plan.longest = max(places, default=0) + 1
        return ids, places, plan, order

    def _forward(self, ids: list[int], places: list[int], plan: StepPlan, rows: list[int]) -> torch.Tensor:
        """Returns logits of the wanted rows, float32 [rows, vocabulary]; a step that only reads may want none."""
        ids_T, places_T = (torch.tensor(_filled(each), device=self._device) for each in (ids, places))
        rows_R = torch.tensor(_filled(rows), device=self._device)
        return self._through(ids_T, places_T, plan, rows_R)[: len(rows)]

    def _take_chunk(self, result: StepResult, part: ChunkPart, chunk: Chunk, logits_NV: torch.Tensor) -> None:
        part.block.length += part.count
        self._prompts[chunk.context] += chunk.ids
        if chunk.targets is not None:
            result.scores[chunk.context] = _scores(logits_NV, chunk.targets, chunk.top)
        if chunk.last:
            result.logits[chunk.context] = logits_NV[-1].numpy(force=True)
            self._remember(self._prompts.pop(chunk.context), part.block)


def _filled(numbers: list[int]) -> list[int]:
    """Filled up to a size that linears are computed in; what stands in the added rows is not looked at."""
    return numbers + [0] * (rows_computed(max(1, len(numbers))) - len(numbers))


def _rows_wanted(decoding: int, plan: StepPlan, chunks: Sequence[Chunk]) -> tuple[list[int], list[tuple[int, int]]]:
    """Which rows need logits, and where each chunk's rows stand among them as (first, count)."""
    rows = list(range(decoding))
    wants: list[tuple[int, int]] = []
    for part, chunk in zip(plan.chunks, chunks, strict=True):
        end = part.start + part.count
        wanted = (
            range(part.start, end) if chunk.targets is not None else range(end - 1, end) if chunk.last else range(0)
        )
        wants.append((len(rows), len(wanted)))
        rows += wanted
    return rows, wants


def _scores(logits_NV: torch.Tensor, targets: Sequence[int | None], top: int) -> list[TokenScore | None]:
    """The log-probability of each target after its position; None where there is no target."""
    nats_NV = torch.log_softmax(logits_NV.double(), dim=-1)
    best = torch.topk(nats_NV, min(top, nats_NV.shape[1]), dim=-1) if top else None
    scores: list[TokenScore | None] = []
    for row, target in enumerate(targets):
        if target is None:
            continue
        alternatives: tuple[tuple[int, float], ...] = ()
        if best is not None:
            alternatives = tuple(zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True))
        scores.append(TokenScore(float(nats_NV[row, target]), alternatives))
    return scores


def _common(known: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens two prompts share at their beginning."""
    for place, (a, b) in enumerate(zip(known, ids, strict=False)):
        if a != b:
            return place
    return min(len(known), len(ids))
