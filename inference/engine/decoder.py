"""The forward pass of a packed step, through transformers or straight through the layers (inside the inference server).

transformers' own forward works for every architecture but spends about as long in Python as a small model needs to
compute. The common plain decoders (Llama, Qwen2, Qwen3) are therefore walked layer by layer here, with the same modules
and tensors; a test holds both paths to the same tokens. Shapes: T tokens, R wanted rows, C hidden size, Q query heads,
H key-value heads, D head size, V vocabulary.
"""

import math
from typing import Any, Protocol  # Any: transformers leaves the attributes of its modules unannotated

import torch
from transformers import PreTrainedModel

from inference.engine.attention import StepPlan, attend

_FIRST_PLACES = 1024
_PLAIN_DECODERS = frozenset({"llama", "qwen2", "qwen3"})


class Forward(Protocol):
    """ids_T and places_T of a step to logits [R, V] in float32."""

    def __call__(
        self, ids_T: torch.Tensor, places_T: torch.Tensor, plan: StepPlan, rows_R: torch.Tensor
    ) -> torch.Tensor: ...


def forward_of(model: PreTrainedModel) -> Forward:
    """The fastest way through this model that is known to be right."""
    return PlainDecoder(model) if is_plain(model) else ThroughTransformers(model)


def is_plain(model: PreTrainedModel) -> bool:
    """Whether this is one of the common plain decoders, with nothing in it that they have not all."""
    config: Any = model.config
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    plain = config.model_type in _PLAIN_DECODERS and config.hidden_act == "silu" and not windows
    whole = getattr(config, "partial_rotary_factor", None) in (None, 1.0)
    return plain and whole and not changes_with_length(model.model.rotary_emb.rope_type)


def changes_with_length(rope_type: str) -> bool:
    """Whether rotary embeddings of this kind take other frequencies once a context is longer than trained with."""
    return "dynamic" in rope_type or rope_type == "longrope"


class ThroughTransformers:
    """Any architecture whose attention goes through transformers' interface."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(
        self, ids_T: torch.Tensor, places_T: torch.Tensor, plan: StepPlan, rows_R: torch.Tensor
    ) -> torch.Tensor:
        out = self._model(
            input_ids=ids_T[None], position_ids=places_T[None], use_cache=False, logits_to_keep=rows_R, plan=plan
        )
        logits_RV: torch.Tensor = out.logits[0]
        return logits_RV.float()


class _Norm:
    """RMS norm over the last dimension, x w / sqrt(mean(x^2) + eps); the weight may have more, one row a head.

    On a CPU in float32 it is computed as x (w sqrt(n)) / sqrt(|x|^2 + n eps), which passes over x three times and not
    four as F.rms_norm and a product do there. All it does to one number a row is rounded exactly, so that a row's bits
    do not depend on whether it stands among the eight of a vector or in what is left.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self._eps = eps
        self._floor: float | None = None
        self._weight = weight
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            self._floor = size * eps
            self._weight = weight * math.sqrt(size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._floor is None:
            return torch.nn.functional.rms_norm(x, (x.shape[-1],), None, self._eps).mul_(self._weight)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().add_(self._floor).sqrt_()
        return torch.div(x, length).mul_(self._weight)


class _Layer:
    """One decoder layer, its modules at hand."""

    def __init__(self, module: Any) -> None:  # a decoder layer of any of the plain decoders
        attention, mlp = module.self_attn, module.mlp
        self.before, self.after = _norm_of(module.input_layernorm), _norm_of(module.post_attention_layernorm)
        joined = attention.q_proj.joined
        self.qkv = joined.forward
        self.o = attention.o_proj
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.number: int = attention.layer_idx
        self.scaling: float = attention.scaling
        self.head_size: int = attention.head_dim
        self.queries, self.keys = (size // self.head_size for size in joined.sizes[:2])
        self.turned_norm = self._norm_of_turned(attention) if hasattr(attention, "q_norm") else None

    def _norm_of_turned(self, attention: Any) -> _Norm:
        """Queries and keys stand side by side, so one call takes both."""
        q, k = attention.q_norm, attention.k_norm
        each = torch.cat((q.weight.expand(self.queries, -1), k.weight.expand(self.keys, -1)))
        return _Norm(each, q.variance_epsilon)


def _norm_of(module: Any) -> _Norm:  # an RMSNorm of any of the plain decoders
    return _Norm(module.weight, module.variance_epsilon)


class _Turns:
    """Cosines and sines of places, computed once and kept; as many as the longest context so far, in powers of two."""

    def __init__(self, rotary: Any, like: torch.Tensor) -> None:  # a rotary embedding of any of the plain decoders
        self._rotary = rotary
        self._like = like
        self._cos_LD, self._sin_LD = self._of(_FIRST_PLACES)

    def at(self, places_T: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of places below `longest`: cosines and sines [T, 1, D], the sines of the first half negated."""
        if longest > len(self._cos_LD):
            self._cos_LD, self._sin_LD = self._of(1 << (longest - 1).bit_length())
        return self._cos_LD[places_T, None], self._sin_LD[places_T, None]

    def _of(self, places: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._rotary(self._like, torch.arange(places, device=self._like.device)[None])
        signed_LD = sin[0].clone()
        signed_LD[:, : sin.shape[-1] // 2].neg_()
        return cos[0], signed_LD


class PlainDecoder:
    """Llama, Qwen2 and Qwen3, layer by layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        inner: Any = model.model
        self._embed: torch.Tensor = inner.embed_tokens.weight
        self._turns = _Turns(inner.rotary_emb, self._embed)
        self._layers = [_Layer(layer) for layer in inner.layers[: model.config.num_hidden_layers]]
        self._norm = _norm_of(inner.norm)
        head: Any = model.lm_head
        self._head = head.forward

    def __call__(
        self, ids_T: torch.Tensor, places_T: torch.Tensor, plan: StepPlan, rows_R: torch.Tensor
    ) -> torch.Tensor:
        x_TC = torch.nn.functional.embedding(ids_T, self._embed)
        turn = self._turns.at(places_T, plan.longest)
        for layer in self._layers:
            x_TC = layer.o.plus(self._attention(layer, layer.before(x_TC), turn, plan), x_TC)
            h_TC = layer.after(x_TC)
            x_TC = layer.down.plus(layer.up.times(h_TC, layer.gate.swish(h_TC)), x_TC)
        logits_RV: torch.Tensor = self._head(self._norm(x_TC[rows_R]))
        return logits_RV.float()

    def _attention(
        self, layer: _Layer, h_TC: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], plan: StepPlan
    ) -> torch.Tensor:
        tokens, queries = h_TC.shape[0], layer.queries
        qkv_TND = layer.qkv(h_TC).view(tokens, -1, layer.head_size)
        qk_TND = qkv_TND[:, : queries + layer.keys]
        if layer.turned_norm is not None:
            qk_TND = layer.turned_norm(qk_TND)
        qk_NTD = _turned(qk_TND, *turn).transpose(0, 1)
        v_HTD = qkv_TND[:, queries + layer.keys :].transpose(0, 1)
        out_TQD = attend(plan, layer.number, qk_NTD[:queries], qk_NTD[queries:], v_HTD, layer.scaling, None, None)
        return out_TQD.reshape(tokens, -1)


def _turned(x_TND: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, the half-split form (arXiv:2104.09864 as Llama lays it out)."""
    return torch.addcmul(x_TND * cos_T1D, x_TND.roll(x_TND.shape[-1] // 2, -1), sin_T1D)
