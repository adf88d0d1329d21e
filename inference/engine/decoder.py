"""The forward pass of a packed step, through transformers or straight through the layers (inside the inference server).

transformers' own forward works for every architecture but spends about as long in Python as a small model needs to
compute. The common plain decoders (Llama, Qwen2, Qwen3) are therefore walked layer by layer here, with the same modules
and tensors; a test holds both paths to the same tokens. Shapes: T tokens, R wanted rows, C hidden size, Q query heads,
H key-value heads, D head size, V vocabulary.
"""

from typing import Any, Protocol  # Any: transformers leaves the attributes of its modules unannotated

import torch
from transformers import PreTrainedModel

from inference.engine.attention import StepPlan, attend

_PLAIN_DECODERS = frozenset({"llama", "qwen2", "qwen3"})


class Forward(Protocol):
    """ids_T and places_T of a step to logits [R, V] in float32."""

    def __call__(
        self, ids_T: torch.Tensor, places_T: torch.Tensor, plan: StepPlan, rows_R: torch.Tensor
    ) -> torch.Tensor: ...


def forward_of(model: PreTrainedModel) -> Forward:
    """The fastest way through this model that is known to be right."""
    return PlainDecoder(model) if _is_plain(model) else ThroughTransformers(model)


def _is_plain(model: PreTrainedModel) -> bool:
    config: Any = model.config
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    plain = config.model_type in _PLAIN_DECODERS and config.hidden_act == "silu" and not windows
    return plain and getattr(config, "partial_rotary_factor", None) in (None, 1.0)


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
    """An RMSNorm of any of the plain decoders."""

    def __init__(self, module: Any) -> None:
        self._weight: torch.Tensor = module.weight
        self._eps: float = module.variance_epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self._weight, self._eps)


class _Layer:
    """One decoder layer, its modules at hand."""

    def __init__(self, module: Any) -> None:  # a decoder layer of any of the plain decoders
        attention, mlp = module.self_attn, module.mlp
        self.before, self.after = _Norm(module.input_layernorm), _Norm(module.post_attention_layernorm)
        self.q, self.k, self.v = (getattr(attention, f"{name}_proj").forward for name in ("q", "k", "v"))
        self.o = attention.o_proj
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.q_norm = _Norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.k_norm = _Norm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.number: int = attention.layer_idx
        self.scaling: float = attention.scaling
        self.head_size: int = attention.head_dim


class PlainDecoder:
    """Llama, Qwen2 and Qwen3, layer by layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        inner: Any = model.model
        self._embed: torch.Tensor = inner.embed_tokens.weight
        self._rotary = inner.rotary_emb
        self._layers = [_Layer(layer) for layer in inner.layers[: model.config.num_hidden_layers]]
        self._norm = _Norm(inner.norm)
        head: Any = model.lm_head
        self._head = head.forward

    def __call__(
        self, ids_T: torch.Tensor, places_T: torch.Tensor, plan: StepPlan, rows_R: torch.Tensor
    ) -> torch.Tensor:
        x_TC = torch.nn.functional.embedding(ids_T, self._embed)
        turn = self._turn(x_TC, places_T)
        for layer in self._layers:
            x_TC = layer.o.plus(self._attention(layer, layer.before(x_TC), turn, plan), x_TC)
            h_TC = layer.after(x_TC)
            x_TC = layer.down.plus(layer.up.times(h_TC, layer.gate.swish(h_TC)), x_TC)
        logits_RV: torch.Tensor = self._head(self._norm(x_TC[rows_R]))
        return logits_RV.float()

    def _turn(self, x_TC: torch.Tensor, places_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the tokens' places, [T, 1, D]; the sines of the first half with their sign turned."""
        cos, sin = self._rotary(x_TC[None], places_T[None])
        signed = sin[0, :, None].clone()
        signed[..., : sin.shape[-1] // 2].neg_()
        return cos[0, :, None], signed

    def _attention(
        self, layer: _Layer, h_TC: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], plan: StepPlan
    ) -> torch.Tensor:
        tokens, size = h_TC.shape[0], layer.head_size
        q_TQD, k_THD, v_THD = (p(h_TC).view(tokens, -1, size) for p in (layer.q, layer.k, layer.v))
        if layer.q_norm is not None and layer.k_norm is not None:
            q_TQD, k_THD = layer.q_norm(q_TQD), layer.k_norm(k_THD)
        q_TQD, k_THD = _turned(q_TQD, *turn), _turned(k_THD, *turn)
        out_TQD = attend(
            plan,
            layer.number,
            q_TQD.transpose(0, 1),
            k_THD.transpose(0, 1),
            v_THD.transpose(0, 1),
            layer.scaling,
            None,
            None,
        )
        return out_TQD.reshape(tokens, -1)


def _turned(x_TND: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, the half-split form (arXiv:2104.09864 as Llama lays it out)."""
    return torch.addcmul(x_TND * cos_T1D, x_TND.roll(x_TND.shape[-1] // 2, -1), sin_T1D)
