"""How a file is to be inspected: everything the settings, the run and the caller decide (arrow: intake)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from core.chat_templates import ChatEncoder, Encoded
from core.formats import RowProblem
from core.validation.contamination import SuiteIndex
from core.validation.rows import TrainingRow
from core.validation.specs import DatasetSpec

if TYPE_CHECKING:
    from core.validation.looks import Looks  # loads what compares rows, which level quick does not

LEVELS = ("quick", "standard", "deep")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a file is to be inspected. Lengths in tokens, shares 0..1."""

    specs: Mapping[str, DatasetSpec]
    level: str = "standard"
    spec: str | None = None
    detect_specs: tuple[str, ...] = ("chat_sft_v1", "completion_v1")
    spec_by_pattern: Mapping[str, str] = field(default_factory=dict)
    encoder: ChatEncoder | None = None
    max_length: int = 2048
    too_long: str = "reject"
    bad_rows: str = "reject_file"
    bad_rows_limit: float = 0.05
    seed: int = 0
    held_out: float = 0.0
    held_out_cap: int = 0
    already_held_out: Collection[bytes] = frozenset()
    suites: SuiteIndex = field(default_factory=lambda: SuiteIndex({}))
    content: bool = True  # False: layer 1 alone
    show_mask: int = 0
    limits: Mapping[str, float] = field(default_factory=dict)
    looks: "Looks | None" = None  # what takes long and may refuse the file, or is asked for by `check`


class Sinks(Protocol):
    """Where an accepted file's rows go."""

    def held_out(self, row_number: int, row_hash: bytes, row: TrainingRow) -> None: ...
    def train(self, row_numbers: Sequence[int], row_hashes: Sequence[bytes], encoded: Sequence[Encoded]) -> None: ...
    def set_aside(self, row_number: int, line: int, problem: RowProblem, value: object) -> None: ...
