"""Totals of files, rows and refusals by generator and by validator (arrow: intake -> status/data_lineage.json).

Reads    nothing: it is fed verdicts       Writes   nothing: the daemon writes `as_dict` to data_lineage.json
Format   {generators{id@version}, validators{name@version}, summary{...}}
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any  # verdicts are JSON

MIN_FILES = 20  # a generator of fewer files is never called an offender
OFFENDING_RATE = 0.05
_Z = 1.959963984540054  # two-sided 95 %
_TOP = 5


def wilson_interval(failed: int, total: int) -> tuple[float, float]:
    """95 % interval of a failure rate (Wilson 1927): sane for few files, where failed/total is not.

    Returns:
        (low, high), shares 0..1; (0, 1) without any file.
    """
    if total == 0:
        return 0.0, 1.0
    rate, z2 = failed / total, _Z * _Z
    centre = rate + z2 / (2 * total)
    spread = _Z * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total * total))
    scale = 1 + z2 / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(slots=True)
class _Totals:
    files: int = 0
    rows: int = 0
    passed: int = 0
    failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        low, high = wilson_interval(self.failed, self.files)
        return {
            "files": self.files,
            "rows": self.rows,
            "passed": self.passed,
            "failed": self.failed,
            "fail_rate": round(self.failed / self.files, 4) if self.files else 0.0,
            "fail_rate_ci95": [round(low, 4), round(high, 4)],
            "top_errors": [{"code": code, "count": count} for code, count in self.errors.most_common(_TOP)],
        }


class LineageTracker:
    """Adds up verdicts. Feed each job once; feeding it again with the same id replaces it."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[str, int, bool, list[dict[str, Any]], str]] = {}

    def add(self, verdict: Mapping[str, Any], generator: str) -> None:
        """Add what the gates said about one file.

        Args:
            verdict: a verdict of the contract; only what the gates wrote counts, not what training made of it.
            generator: `id@version`.
        """
        passed = verdict.get("state") != "rejected"
        issues = [dict(issue) for issue in verdict.get("issues") or () if issue.get("severity") == "error"]
        entry = (generator, int(verdict.get("rows") or 0), passed, issues, str(verdict.get("code")))
        self._jobs[str(verdict.get("job_id"))] = entry

    def as_dict(self) -> dict[str, Any]:
        """The document of status/data_lineage.json."""
        generators: dict[str, _Totals] = {}
        validators: dict[str, _Totals] = {}
        for generator, rows, passed, issues, code in self._jobs.values():
            codes = [issue["code"] for issue in issues] or ([] if passed else [code])
            _count(generators.setdefault(generator, _Totals()), rows, passed, codes)
            for validator, found in _by_validator(issues).items():
                _count(validators.setdefault(validator, _Totals()), rows, not found, found)
        total = _Totals()
        for part in generators.values():
            _add(total, part)
        return {
            "generators": {name: part.as_dict() for name, part in sorted(generators.items())},
            "validators": {name: part.as_dict() for name, part in sorted(validators.items())},
            "summary": {**total.as_dict(), "worst_offenders": _offenders(generators)},
        }


def _by_validator(issues: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The error codes that each validator gave one file; both looked at it."""
    found: dict[str, list[str]] = {"SpecValidator@1.0.0": [], "DataValidator@1.0.0": []}
    for issue in issues:
        found.setdefault(f"{issue['validator']}@{issue['version']}", []).append(issue["code"])
    return found


def _count(totals: _Totals, rows: int, passed: bool, codes: list[str]) -> None:
    totals.files += 1
    totals.rows += rows
    totals.passed += passed
    totals.failed += not passed
    totals.errors.update(codes)


def _add(total: _Totals, part: _Totals) -> None:
    total.files += part.files
    total.rows += part.rows
    total.passed += part.passed
    total.failed += part.failed
    total.errors.update(part.errors)


def _offenders(generators: Mapping[str, _Totals]) -> list[dict[str, Any]]:
    """Generators whose failure rate is over 5 % beyond chance: at least 20 files, and the whole interval above it."""
    found = [
        {"generator": name, **part.as_dict()}
        for name, part in generators.items()
        if part.files >= MIN_FILES and wilson_interval(part.failed, part.files)[0] > OFFENDING_RATE
    ]
    return sorted(found, key=lambda entry: (-entry["fail_rate_ci95"][0], entry["generator"]))
