"""The gates: SpecValidator (layer 1) and DataValidator (layer 2), torch-free (arrow: intake)."""

from core.validation.data_validator import DataValidator
from core.validation.expected import ExpectedRows, build_token_cache, expected_rows, token_cache_of
from core.validation.result import ValidationResult
from core.validation.rows import prompt_sha256, row_sha256, training_row
from core.validation.spec_validator import SpecValidator
from core.validation.specs import DATASET_SPECS, DatasetSpec
from core.validation.token_cache import TokenCache

__all__ = [
    "DATASET_SPECS",
    "DataValidator",
    "DatasetSpec",
    "ExpectedRows",
    "SpecValidator",
    "TokenCache",
    "ValidationResult",
    "build_token_cache",
    "expected_rows",
    "prompt_sha256",
    "row_sha256",
    "token_cache_of",
    "training_row",
]
