"""Every number of training in one place: what the settings say, and what is derived from it (beside queue -> trainer).

Units    tokens, optimizer steps; learning rates without unit
"""

import os
from dataclasses import dataclass

import torch

from core.memory_estimate import CPU_MICRO_BATCH_TOKENS, GPU_MICRO_BATCH_TOKENS
from core.settings import Settings
from trainer.config.precision import compute_dtype

LORA_ALPHA_PER_RANK = 2  # alpha = 2 x rank, the convention of the LoRA paper's code (arXiv 2106.09685)


@dataclass(frozen=True, slots=True)
class Dials:
    """The numbers one job is trained with."""

    device: str
    compute_dtype: torch.dtype
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    grad_clip: float
    rows_per_step: int
    micro_batch_tokens: int
    default_micro_batch_tokens: int
    gradient_checkpointing: bool

    def rate_at(self, run_step: int, job_step: int, job_steps: int) -> float:
        """The learning rate of an optimizer step: a function of its place alone, so nothing about it needs saving.

        Args:
            run_step: steps taken in the run before this one (warm-up happens once in a run).
            job_step: steps taken in the job before this one. job_steps: all steps of the job.

        `decay` falls in a straight line and would reach zero one step after the job's last
        ("Straight to Zero", arXiv 2502.15938).
        """
        rate = self.learning_rate
        if run_step < self.warmup_steps:
            rate *= (run_step + 1) / (self.warmup_steps + 1)
        if self.schedule == "decay":
            rate *= 1 - job_step / job_steps
        return rate


def derive(settings: Settings, *, device: str, auto_precision: str, micro_batch_tokens: int | None = None) -> Dials:
    """Turn the settings of a job into dials.

    Args:
        auto_precision: what the probe said when the run began; travels in the checkpoint.
        micro_batch_tokens: what an out-of-memory has left of the default, which travels in the checkpoint.
    """
    hyper, trainer = settings.hyperparams, settings.trainer
    default = GPU_MICRO_BATCH_TOKENS if device.startswith("cuda") else CPU_MICRO_BATCH_TOKENS
    return Dials(
        device=device,
        compute_dtype=compute_dtype(hyper.fp_precision, device, auto_precision),
        learning_rate=hyper.learning_rate,
        schedule=trainer.schedule,
        warmup_steps=trainer.warmup_steps,
        weight_decay=trainer.weight_decay,
        grad_clip=trainer.grad_clip,
        rows_per_step=hyper.batch_size * hyper.gradient_accumulation,
        micro_batch_tokens=micro_batch_tokens or default,
        default_micro_batch_tokens=default,
        gradient_checkpointing=trainer.gradient_checkpointing,
    )


def choose_device() -> str:
    """The GPU when torch sees one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(wanted: int | None) -> int:
    """Fix torch's threads, since a sum's last bits depend on how many share it. Returns their number."""
    threads = wanted or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads
