"""The factor that keeps fp16 gradients above zero and below infinity (inside the trainer's arrow).

Dynamic loss scaling as in "Mixed Precision Training" (arXiv 1710.03740), but an overflow repeats the step with half
the factor instead of skipping it: every row is trained exactly as often as asked. It stays 1 for fp32 and bf16. (Not
run on a GPU: this machine has none; on a CPU the tests run it.)
"""

import math

import torch
from torch import Tensor

_FIRST = 2.0**16
_DOUBLE_AFTER_STEPS = 2000
_NAME = "loss_scale"


class LossScale:
    """The factor, and the steps since it last changed."""

    def __init__(self) -> None:
        self.value = 1.0
        self._calm_steps = 0

    def enable(self, wanted: bool) -> None:
        """Begin to scale, or stop; a factor in use stays what it is."""
        if wanted != (self.value != 1.0):
            self.value, self._calm_steps = (_FIRST if wanted else 1.0), 0

    def overflowed(self, loss: float, norm: float) -> bool:
        """True when only the gradients are not finite and a smaller factor may help; it is halved then."""
        if self.value == 1.0:
            return False
        if math.isfinite(loss) and not math.isfinite(norm) and self.value > 2:
            self.value, self._calm_steps = self.value / 2, 0
            return True
        self._calm_steps += 1
        if self._calm_steps >= _DOUBLE_AFTER_STEPS:
            self.value, self._calm_steps = self.value * 2, 0
        return False

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: nothing while the factor is 1."""
        return {} if self.value == 1.0 else {_NAME: torch.tensor([self.value, self._calm_steps], dtype=torch.float64)}

    def load(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take back what `tensors` gave. Returns the other tensors."""
        kept = tensors.get(_NAME)
        if kept is not None:
            self.value, self._calm_steps = float(kept[0]), int(kept[1])
        return {name: tensor for name, tensor in tensors.items() if name != _NAME}
