"""A checkpoint's losses and answers on suite items (arrow: judge); the only module of the judge that needs torch.

Reads    a checkpoint folder (and its base for LoRA adapters): safetensors only, no code from the folder is run
Units    losses in nats summed over an item's trained tokens
Shapes   B items of a batch, T tokens, N trained positions, E hidden size, V vocabulary
Errors   ModelError when the folder cannot be loaded
Effects  sets the thread counts of torch and of the tokenizer
Exact    greedy and in float32: a CPU gives the same bits every time
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from core.chat_templates import ChatEncoder
from core.errors import ModelError
from trainer.evaluate.scorer import Loss, Row, Turn
from trainer.models.load import load_causal_lm

# Padded tokens of one forward pass: enough rows to fill the cores, few enough to stay small in memory.
_BATCH_TOKENS = 4096
_ANSWERS_AT_ONCE = 64
# Logits held at once: 4 Mi float32 = 16 MiB stay inside a shared cache of 32 MiB.
_LOGITS_AT_ONCE = 1 << 22


class ModelScorer:
    """A transformers model and its encoder, as a `Scorer`."""

    def __init__(self, model: PreTrainedModel, encoder: ChatEncoder, device: str) -> None:
        self._model = model.to(device).eval()  # type: ignore[arg-type]  # torch's stub knows no device strings here
        # Sampling defaults of the folder must not bend greedy decoding.
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # transformers: untyped
        self._encoder = encoder
        self._device = device
        config = model.config.get_text_config()
        self._context: int = config.max_position_embeddings
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def count_tokens(self, text: str) -> int:
        row = {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": text}]}
        return int(self._encoder.encode_row(row).mask.sum())

    @torch.inference_mode()
    def losses(self, rows: Sequence[Row]) -> list[Loss]:
        encoded = self._encoder.encode_rows(list(rows))
        ids = [torch.tensor(e.ids[: self._context], dtype=torch.long) for e in encoded]
        masks = [torch.tensor(e.mask[: self._context], dtype=torch.bool) for e in encoded]
        totals: list[Loss] = [(0.0, 0)] * len(rows)
        for batch in _batches([len(one) for one in ids], _BATCH_TOKENS):
            nll_B, count_B = self._batch_losses([ids[i] for i in batch], [masks[i] for i in batch])
            for place, nll, count in zip(batch, nll_B.tolist(), count_B.tolist(), strict=True):
                totals[place] = (nll, count)
        return totals

    def _batch_losses(self, ids: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Right padding needs no attention mask: no real token can look at what follows it."""
        ids_BT = pad_sequence(list(ids), batch_first=True).to(self._device)
        trained_BT = pad_sequence(list(masks), batch_first=True).to(self._device)[:, 1:]
        hidden_BTE = self._model.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state
        return self._summed(hidden_BTE, ids_BT, trained_BT)

    def _summed(self, hidden_BTE: Tensor, ids_BT: Tensor, trained_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and trained tokens of each row, [B]; `trained_BT` belongs to the tokens from the second on."""
        item_N, _position_N = trained_BT.nonzero(as_tuple=True)
        nll_N = self._nll(hidden_BTE[:, :-1][trained_BT], ids_BT[:, 1:][trained_BT])
        nll_B = torch.zeros(len(ids_BT), dtype=torch.float64, device=self._device).index_add_(0, item_N, nll_N.double())
        return nll_B, trained_BT.sum(dim=1)

    @torch.inference_mode()
    def choice_losses(self, prompts: Sequence[Sequence[Turn]], choices: Sequence[Sequence[str]]) -> list[list[Loss]]:
        asked = [self._question(list(p), texts) for p, texts in zip(prompts, choices, strict=True)]
        found: list[list[Loss]] = [[(0.0, 0)] * len(texts) for texts in choices]
        fits = [n for n, one in enumerate(asked) if one.longest <= self._context]
        for batch in _batches([asked[n].longest * len(asked[n].ends) for n in fits], _BATCH_TOKENS):
            places = [fits[n] for n in batch]
            nlls, counts = self._batch_choices([asked[n] for n in places])
            rest = iter(zip(nlls.tolist(), counts.tolist(), strict=True))
            for n in places:
                found[n] = [next(rest) for _text in choices[n]]
        return found

    def _question(self, prompt: list[Turn], choices: Sequence[str]) -> "_Question":
        rows = [{"messages": [*prompt, {"role": "assistant", "content": choice}]} for choice in choices]
        encoded = self._encoder.encode_rows(rows)
        ids = [list(one.ids) for one in encoded]
        # The first trained token is told by the position before it, so that one goes with each choice.
        shared = min(_shared_length(ids), *(list(one.mask).index(True) for one in encoded)) - 1
        ends = [torch.tensor(one[shared:], dtype=torch.long) for one in ids]
        masks = [torch.tensor(one.mask[shared:], dtype=torch.bool) for one in encoded]
        return _Question(ids[0][:shared], ends, masks)

    def _batch_choices(self, asked: Sequence["_Question"]) -> tuple[Tensor, Tensor]:
        """What the choices of a question share is read once: left-padded, its keys and values then repeated for each.

        Returns:
            Loss and trained tokens of every choice of every question, in order.
        """
        longest = max(len(one.shared) for one in asked)
        shared_BT = torch.tensor([[0] * (longest - len(one.shared)) + one.shared for one in asked])
        seen_BT = torch.tensor([[0] * (longest - len(one.shared)) + [1] * len(one.shared) for one in asked])
        cache = DynamicCache(config=self._model.config)
        self._model.get_decoder()(
            input_ids=shared_BT.to(self._device),
            attention_mask=seen_BT.to(self._device),
            position_ids=_positions(seen_BT).to(self._device),
            past_key_values=cache,
        )
        owner_C = torch.tensor([n for n, one in enumerate(asked) for _end in one.ends])
        cache.batch_select_indices(owner_C.to(self._device))
        ends_CT = pad_sequence([end for one in asked for end in one.ends], batch_first=True)
        trained_CT = pad_sequence([mask for one in asked for mask in one.masks], batch_first=True)
        # Right padding is seen as well: nothing real looks at what follows it.
        seen_CT = torch.cat([seen_BT[owner_C], torch.ones_like(ends_CT)], dim=1)
        hidden_CTE = self._model.get_decoder()(
            input_ids=ends_CT.to(self._device),
            attention_mask=seen_CT.to(self._device),
            position_ids=_positions(seen_CT)[:, longest:].to(self._device),
            past_key_values=cache,
        ).last_hidden_state
        return self._summed(hidden_CTE, ends_CT.to(self._device), trained_CT[:, 1:].to(self._device))

    def _nll(self, hidden_NE: Tensor, targets_N: Tensor) -> Tensor:
        head_VE: Tensor = self._model.get_output_embeddings().weight
        rows = max(1, _LOGITS_AT_ONCE // head_VE.shape[0])
        parts = [hidden_NE.new_empty(0)]
        for start in range(0, len(targets_N), rows):
            chunk = slice(start, start + rows)
            logits = (hidden_NE[chunk] @ head_VE.T).float()
            if self._softcap is not None:
                logits = torch.tanh(logits / self._softcap) * self._softcap
            parts.append(functional.cross_entropy(logits, targets_N[chunk], reduction="none"))
        return torch.cat(parts)

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Sequence[Turn]], max_new_tokens: int) -> list[str]:
        ids = [list(self._encoder.encode_prompt(list(prompt))) for prompt in prompts]
        answers = [""] * len(ids)
        order = [i for i in sorted(range(len(ids)), key=lambda i: len(ids[i])) if len(ids[i]) < self._context]
        for start in range(0, len(order), _ANSWERS_AT_ONCE):
            batch = order[start : start + _ANSWERS_AT_ONCE]
            for place, text in zip(batch, self._generate([ids[i] for i in batch], max_new_tokens), strict=True):
                answers[place] = text
        return answers

    def _generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        longest = max(len(prompt) for prompt in prompts)
        ends = sorted(self._encoder.eos_ids)
        ids_BT = torch.tensor([[ends[0]] * (longest - len(p)) + list(p) for p in prompts], device=self._device)
        seen_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        decoding = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers: untyped
            do_sample=False,
            num_beams=1,
            max_new_tokens=min(max_new_tokens, self._context - longest),
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        out_BT = self._model.generate(inputs=ids_BT, attention_mask=seen_BT, generation_config=decoding)
        return [self._encoder.decode(_until(row[longest:].tolist(), set(ends))) for row in out_BT]


@dataclass(frozen=True, slots=True)
class _Question:
    """A multiple-choice item as tokens: what all choices begin with, and how each goes on, with its trained tokens."""

    shared: list[int]
    ends: list[Tensor]
    masks: list[Tensor]

    @property
    def longest(self) -> int:
        return len(self.shared) + max(len(end) for end in self.ends)


def _shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return next((n for n, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))


def _positions(seen_BT: Tensor) -> Tensor:
    """The place of each token in its row when padding does not count."""
    return (seen_BT.cumsum(dim=1) - 1).clamp(min=0)


def _until(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((i for i, one in enumerate(ids) if one in ends), len(ids))]


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions grouped by length, shortest first, so that a padded batch stays within `budget` tokens."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def load_scorer(folder: Path, base_folder: Path, *, device: str, threads: int) -> ModelScorer:
    """Load a checkpoint for scoring.

    Args:
        folder: full weights, or a LoRA adapter. base_folder: the run's base, read only for an adapter.

    Raises:
        ModelError: the folder does not hold a model that transformers can load.
    """
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers: untyped
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # what the tokenizer uses
    adapter = (folder / "adapter_config.json").is_file()
    model = load_causal_lm(str(base_folder if adapter else folder), torch.float32)
    if adapter:
        try:
            model.load_adapter(str(folder))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(
                f"the adapter cannot be loaded: {error}", where=str(folder), fix="dropforge verify"
            ) from error
    return ModelScorer(model, ChatEncoder.from_folder(folder), device)
