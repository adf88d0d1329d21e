"""Layer 2: would this file really train? (arrow: intake)."""

from pathlib import Path
from typing import Any  # a tokenizer of either library

from core.chat_templates import ChatEncoder
from core.errors import DropforgeError
from core.formats import RowProblem
from core.lineage import Sidecar
from core.validation.inspection import Inspection
from core.validation.plan import LEVELS, Plan
from core.validation.result import ValidationResult
from core.validation.spec_validator import refused
from core.validation.specs import DATASET_SPECS

_DETECTED = ("chat_sft_v1", "completion_v1", "prompt_completion_v1", "alpaca_v1", "sharegpt_v1")


class DataValidator:
    """Checks the content of files with the tokenizer and template that will train them.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, a transformers fast tokenizer, or a `ChatEncoder`.
        max_length: longest row in tokens.

    Raises:
        ModelError: the tokenizer cannot be used.
    """

    def __init__(self, tokenizer: Any, max_length: int = 2048) -> None:  # of two libraries
        self._encoder = tokenizer if isinstance(tokenizer, ChatEncoder) else ChatEncoder.from_tokenizer(tokenizer)
        self._max_length = max_length

    def validate_file(self, path: Path | str, level: str = "QUICK", spec: str | None = None) -> ValidationResult:
        """Check one file.

        Args:
            level: QUICK, STANDARD or DEEP, in any case.
            spec: name of its spec; None detects it.

        Returns:
            The result; bad data never raises.

        Raises:
            ValueError: no such level.
        """
        if level.lower() not in LEVELS:
            raise ValueError(f"no level {level!r}; use one of {', '.join(LEVELS)}")
        from core.validation.audit import looks_of_check  # both load what compares rows: not for who only imports us
        from core.validation.looks import looking

        try:
            with looking(looks_of_check(level.lower())) as looks:
                plan = Plan(
                    specs=DATASET_SPECS,
                    level=level.lower(),
                    spec=spec,
                    encoder=self._encoder,
                    max_length=self._max_length,
                    detect_specs=_DETECTED,
                    looks=looks,
                )
                return Inspection(Path(path), Sidecar(), plan).run()
        except (DropforgeError, OSError) as error:
            fix = getattr(error, "fix", "") or "check that the file is there and may be read"
            return refused(RowProblem("unreadable", f"the file cannot be read: {error}", fix=fix))
