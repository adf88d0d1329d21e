"""The contestants of scripts.bench.train that are not ours: transformers' Trainer and TRL's SFTTrainer.

Units    tokens, seconds
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from trainer.packing import Row

ROWS_A_STEP = 8
RATE = 1e-3
RANK = 16


@dataclass
class Timed:
    """Tokens, seconds and seconds of processor time of all steps but the first."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class StepClock(TrainerCallback):
    """Times the steps of a Trainer from the end of the first to the end of the last."""

    def __init__(self) -> None:
        self.first = self.last = self.cpu_first = self.cpu_last = 0.0
        self.tokens_first = self.tokens_last = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last, self.cpu_last = time.perf_counter(), time.process_time()
        self.tokens_last = state.num_input_tokens_seen
        if not self.first:
            self.first, self.cpu_first, self.tokens_first = self.last, self.cpu_last, self.tokens_last

    def timed(self, tokens: int | None = None) -> Timed:
        """Args: tokens: useful ones; None counts what the Trainer saw, which is right where nothing is padded."""
        counted = self.tokens_last - self.tokens_first if tokens is None else tokens
        return Timed(counted, self.last - self.first, self.cpu_last - self.cpu_first)


def trainer_arguments(**more: Any) -> dict[str, Any]:
    return {
        "output_dir": "/tmp/bench-train",  # noqa: S108  # nothing is written there
        "per_device_train_batch_size": ROWS_A_STEP,
        "learning_rate": RATE,
        "adam_beta2": 0.95,  # ours
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "save_strategy": "no",
        "report_to": [],
        "logging_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        **more,
    }


def examples_of(rows: list[Row]) -> list[dict[str, Any]]:
    return [{"input_ids": row.ids.tolist(), "labels": row.ids.tolist(), "length": len(row.ids)} for row in rows]


def pad(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(e["input_ids"]) for e in examples)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([e[key] + [value] * (longest - len(e[key])) for e in examples])

    mask = [[1] * len(e["input_ids"]) + [0] * (longest - len(e["input_ids"])) for e in examples]
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)}


def hf_padded(model: Any, rows: list[Row], **more: Any) -> Timed:
    clock = StepClock()
    arguments = TrainingArguments(**trainer_arguments(remove_unused_columns=False, **more))
    trainer = Trainer(model, arguments, pad, examples_of(rows), callbacks=[clock])
    if "train_sampling_strategy" not in more:
        trainer._get_train_sampler = lambda *_: None  # type: ignore[method-assign]  # the rows' own order, as ours
    trainer.train()
    return clock.timed(sum(len(row.ids) for row in rows[ROWS_A_STEP:]))


def hf_grouped(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return hf_padded(model, rows, train_sampling_strategy="group_by_length", length_column_name="length")


def hf_lora(model: PreTrainedModel, rows: list[Row]) -> Timed:
    """With peft's own layers, of the rank and on the layers that ours has."""
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return hf_padded(get_peft_model(model, config), rows)


def hf_padded_bf16(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return hf_padded(model, rows, bf16=True)


def _trl(model: PreTrainedModel, rows: list[Row], strategy: str, **more: Any) -> Timed:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock = StepClock()
    config = SFTConfig(
        **trainer_arguments(per_device_train_batch_size=2, include_num_input_tokens_seen="all", **more),
        packing=True,
        packing_strategy=strategy,
        max_length=1024,
        gradient_checkpointing=False,
        padding_free=strategy == "bfd",
        dataset_num_proc=None,
    )
    data = Dataset.from_list([{"input_ids": row.ids.tolist()} for row in rows])
    trainer = SFTTrainer(model, config, train_dataset=data, processing_class=_any_tokenizer(), callbacks=[clock])
    trainer.train()
    return clock.timed()


def _any_tokenizer() -> Any:
    """SFTTrainer wants one, though the rows are token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106  # a token of text
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")  # noqa: S106


def trl_bfd(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return _trl(model, rows, "bfd")


def trl_wrapped(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return _trl(model, rows, "wrapped")


def trl_bfd_bf16(model: PreTrainedModel, rows: list[Row]) -> Timed:
    return _trl(model, rows, "bfd", bf16=True)
