"""Model and optimizer, and the one optimizer step that everything else exists for (arrow: queue -> trainer ->
checkpoints).

An optimizer step takes packed micro-batches, sums their gradients normalised by the step's trained tokens, refuses a
loss or gradient that is not finite before any weight moves, clips, and applies fused AdamW. The state of it all
(weights, moments, step counts, random numbers) is handed out and taken back by name, as plain tensors, so that a
checkpoint holds no pickle.

Shapes   B=1, T tokens of a micro-batch, N trained positions, E hidden size, V vocabulary       Units    losses in
         nats a token
Errors   NonFiniteLossError before the weights change
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.errors import CheckpointError, NonFiniteLossError
from trainer import attention
from trainer.config.dials import Dials
from trainer.half_weights import HalfWeights
from trainer.loss import summed_cross_entropy, vocabulary_head
from trainer.loss_scale import LossScale
from trainer.packing import MicroBatch

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step reports."""

    loss: float  # mean over the trained tokens, before the update
    grad_norm: float  # before clipping
    tokens: int
    trained_tokens: int


class Engine:
    """A causal language model in training.

    Args:
        model: a transformers causal LM, with or without LoRA layers in place; its trainable parameters are those that
            require gradients.
        dials: see trainer.config.dials.
    """

    def __init__(self, model: nn.Module, dials: Dials) -> None:
        self.device = torch.device(dials.device)
        self.model = model.to(self.device).train()
        self.model.set_attn_implementation(attention.NAME)  # type: ignore[operator]  # transformers models have it
        self._trunk = self.model.get_decoder()  # type: ignore[operator]  # the same
        self._softcap: float | None = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)  # type: ignore[union-attr,operator]  # the same
        self.trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        decayed = [p for p in self.trainable.values() if p.ndim >= 2]
        plain = [p for p in self.trainable.values() if p.ndim < 2]  # norms and biases are not decayed
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": dials.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=dials.learning_rate,
            betas=(0.9, 0.95),  # the usual pair for language models (GPT-3, arXiv 2005.14165, app. B)
            fused=True,
        )
        self._scale = LossScale()
        self._half: HalfWeights | None = None
        self.adopt(dials)

    def adopt(self, dials: Dials) -> None:
        """Train with other dials from the next step on; moments and step counts stay."""
        self.dials = dials
        self._scale.enable(dials.compute_dtype == torch.float16)
        if (dials.compute_dtype == torch.bfloat16) != (self._half is not None):
            self._half = None if self._half is not None else HalfWeights(self.model, torch.bfloat16)
        self.optimizer.param_groups[0]["weight_decay"] = dials.weight_decay
        toggle = "enable" if dials.gradient_checkpointing else "disable"
        getattr(self.model, f"activation_checkpointing_{toggle}")()

    def step(self, batches: Sequence[MicroBatch], learning_rate: float) -> StepResult:
        """Take one optimizer step over the micro-batches of it.

        Raises:
            NonFiniteLossError: loss or gradient is not finite; weights and moments are as before.
        """
        trained = sum(len(batch.trained_N) for batch in batches)
        loss_value, norm_value = self._gradients(batches, trained)
        while self._scale.overflowed(loss_value, norm_value):  # the same rows again: a skipped step would lose them
            loss_value, norm_value = self._gradients(batches, trained)
        self._refuse_non_finite(loss_value, norm_value)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return StepResult(loss_value, norm_value, sum(len(batch.ids_T) for batch in batches), trained)

    def _gradients(self, batches: Sequence[MicroBatch], trained: int) -> tuple[float, float]:
        """Fill the gradients, clipped. Returns the mean loss and the gradients' norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        scale = self._scale.value
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            if len(batch.trained_N):
                loss += self.loss(batch, scale=scale / trained)
        norm = self._clip()
        values: list[float] = torch.stack((loss / scale, norm)).tolist()  # the step's only wait for the device
        return values[0], values[1]

    def loss(self, batch: MicroBatch, *, scale: float, backward: bool = True) -> Tensor:
        """scale x the summed loss of a micro-batch, detached; with `backward`, its gradients are added to the
        parameters'."""
        layout = attention.to_device(batch.layout, self.device)
        ids, positions, trained, targets = (
            torch.from_numpy(x).to(self.device, non_blocking=True)
            for x in (batch.ids_T, batch.positions_T, batch.trained_N, batch.targets_N)
        )
        with attention.packed(layout), torch.set_grad_enabled(backward):
            with self.products():
                hidden_TE = self._trunk(
                    input_ids=ids[None], position_ids=positions[None], use_cache=False
                ).last_hidden_state[0]
                hidden_NE = hidden_TE.index_select(0, trained)
                loss = summed_cross_entropy(
                    hidden_NE, vocabulary_head(self.model), targets, scale=scale, softcap=self._softcap
                )
                if backward:
                    loss.backward()  # type: ignore[no-untyped-call]  # torch: untyped
        return loss.detach()

    def products(self) -> AbstractContextManager[object]:
        """Matrix products in the dial's format; a null context for fp32. fp16 needs autocast: its sums stay fp32."""
        if self._half is not None:
            return self._half.in_use()
        if self.dials.compute_dtype == torch.float16:
            return torch.autocast(self.device.type, dtype=torch.float16)
        return contextlib.nullcontext()

    def _clip(self) -> Tensor:
        gradients = [p.grad for p in self.trainable.values() if p.grad is not None]
        if self._scale.value != 1:
            torch._foreach_mul_(gradients, 1 / self._scale.value)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.dials.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.trainable.values(), self.dials.grad_clip, norm)
        return norm.float()

    def _refuse_non_finite(self, loss: float, norm: float) -> None:
        if loss - loss == 0 and norm - norm == 0:  # inf - inf and nan - nan are nan
            return
        self.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteLossError(
            f"loss {loss}, gradient norm {norm}: the step was not taken", fix="look at the rows named in the verdict"
        )

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The moments and step counts by parameter name, `<name>.exp_avg` and so on (no copies), and the loss scale."""
        moments = {
            f"{name}.{moment}": self.optimizer.state[parameter][moment]
            for name, parameter in self.trainable.items()
            for moment in MOMENTS
            if moment in self.optimizer.state[parameter]
        }
        return moments | self._scale.tensors()

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `optimizer_tensors` gave. Raises CheckpointError when the names or shapes are not this
        model's."""
        self.optimizer.state.clear()
        tensors = self._scale.load(tensors)
        known = {f"{name}.{moment}": p for name, p in self.trainable.items() for moment in MOMENTS}
        if strangers := tensors.keys() - known.keys():
            raise CheckpointError(
                f"the optimizer state has {len(strangers)} tensors this model has not, e.g. {min(strangers)}",
                fix="use the method and model the run began with, or another `run`",
            )
        for key, tensor in tensors.items():
            name, _, moment = key.rpartition(".")
            parameter = self.trainable[name]
            if moment != "step" and tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{key} is {list(tensor.shape)} in the checkpoint, {list(parameter.shape)} here",
                    fix="use the method and model the run began with, or another `run`",
                )
            self.optimizer.state[parameter][moment] = tensor.to(self.device, copy=True)


def random_state() -> dict[str, Tensor]:
    """The random numbers' state, CPU and every CUDA device, as tensors by name."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    for name, tensor in state.items():
        if name.startswith("cuda:") and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensor, device=name)
