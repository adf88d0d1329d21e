"""Copies of a model's weights in a smaller format, for the products alone (inside the trainer's arrow).

The weights that are trained, saved, judged and served stay fp32. While a micro-batch runs, their copies stand in
their place, so layers and activations are in the smaller format, and each gradient is added to the fp32 weight's own
as soon as it is whole ("Mixed Precision Training", arXiv 1710.03740, without autocast's casts at every product). The
tables of embeddings and of the vocabulary stay fp32: small formats lose the gradients of a token that comes often.

Units    none
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any  # hooks hand architecture-specific values through

import torch
from torch import Tensor, nn


class HalfWeights:
    """The copies of one model."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        whole = {id(table.weight) for table in self._tables}
        whole.add(id(model.get_output_embeddings().weight))  # type: ignore[operator]  # transformers models have it
        self._places = [
            (module, name, weight)
            for module in model.modules()
            for name, weight in module.named_parameters(recurse=False)
            if weight.is_floating_point() and id(weight) not in whole
        ]
        self._copies: dict[Tensor, nn.Parameter] = {}
        self._versions: dict[Tensor, int] = {}
        for _, _, weight in self._places:
            if weight not in self._copies:
                self._copies[weight] = self._copy(weight)

    def _copy(self, weight: nn.Parameter) -> nn.Parameter:
        copy = nn.Parameter(weight.detach().to(self._dtype), requires_grad=weight.requires_grad)
        self._versions[weight] = weight._version

        def hand_over(copy: Tensor) -> None:
            gradient, copy.grad = copy.grad, None
            if weight.grad is None:
                weight.grad = gradient.to(weight.dtype)  # type: ignore[union-attr]  # called when there is one
            else:
                weight.grad += gradient  # type: ignore[arg-type]  # the same

        if copy.requires_grad:
            copy.register_post_accumulate_grad_hook(hand_over)  # type: ignore[no-untyped-call]  # torch: untyped
        return copy

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Forward and backward passes in this block run on the copies."""
        self._refresh()
        with ExitStack() as stack:
            for table in self._tables:
                stack.callback(table.register_forward_hook(self._shrink).remove)
            for module, name, weight in self._places:
                setattr(module, name, self._copies[weight])
                stack.callback(setattr, module, name, weight)
            yield

    def _shrink(self, _table: nn.Module, _arguments: Any, found: Tensor) -> Tensor:
        return found.to(self._dtype)

    @torch.no_grad()
    def _refresh(self) -> None:
        """Copy the trained weights, and of the frozen ones those that were loaded anew.

        torch counts the changes of a tensor, but not those that fused AdamW makes.
        """
        changed: list[Tensor] = [w for w, version in self._versions.items() if w.requires_grad or w._version != version]
        torch._foreach_copy_([self._copies[weight] for weight in changed], changed)
        self._versions |= {weight: weight._version for weight in changed}
