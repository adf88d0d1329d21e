"""Which spec a file obeys when nobody says so (arrow: intake, layer 1)."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from core.formats.rows import Batch, RowProblem
from core.validation.specs import DatasetSpec, nearest_spec

FIT_SHARE = 0.9


def named_spec(wanted: str, specs: Mapping[str, DatasetSpec]) -> DatasetSpec | RowProblem:
    """Look a spec up by name."""
    if wanted in specs:
        return specs[wanted]
    near = nearest_spec(wanted, specs)
    fix = f"did you mean {near!r}?" if near else f"known are {', '.join(sorted(specs))}"
    return RowProblem("spec_unknown", f"there is no spec {wanted!r}", None, "$.spec", fix)


def spec_by_pattern(name: str, patterns: Mapping[str, str]) -> str | None:
    """The spec of the first glob that matches a file name."""
    return next((spec for glob, spec in patterns.items() if fnmatch.fnmatchcase(name, glob)), None)


def detect(
    batches: Iterable[Batch], line_count: int, candidates: Sequence[DatasetSpec], specs: Mapping[str, DatasetSpec]
) -> DatasetSpec | RowProblem | None:
    """Find the one candidate that at least 90 % of the rows fit.

    Args:
        line_count: an upper bound of the rows; a candidate is given up once too many of them cannot fit any more.

    Returns:
        The spec; or the refusal, naming the nearest spec; or None when no row could be read at all. A spec returned
        early may still turn out to fit too few rows: see `too_few_fit`.
    """
    alive = {spec.name: spec for spec in candidates}
    misfits = dict.fromkeys(alive, 0)
    first: tuple[int, Mapping[str, object]] | None = None
    parsed = 0
    for batch in batches:
        for line, row in zip(batch.lines, batch.values, strict=True):
            if isinstance(row, RowProblem):
                continue
            parsed += 1
            first = first or (line, row)
            for spec in alive.values():
                misfits[spec.name] += not spec.fits(row)
        alive = {name: spec for name, spec in alive.items() if misfits[name] <= (1 - FIT_SHARE) * line_count}
        if len(alive) < 2:
            break
    if first is None:
        return None
    if len(alive) > 1:  # read to the end: judge by the rows that could be read
        alive = {name: spec for name, spec in alive.items() if misfits[name] <= (1 - FIT_SHARE) * parsed}
    if len(alive) == 1:
        return next(iter(alive.values()))
    return refusal(first, specs, list(alive))


def refusal(
    first: tuple[int, Mapping[str, object]], specs: Mapping[str, DatasetSpec], several: Sequence[str] = ()
) -> RowProblem:
    """Word that no spec fits: the nearest one, and the field that differs."""
    fix = 'name it in the sidecar: {"spec": "..."}'
    if several:
        return RowProblem("spec_unknown", f"the rows fit {' and '.join(several)}", None, "$", fix)
    line, row = first
    nearest = min(specs.values(), key=lambda spec: (spec.error_count(row), spec.name))
    problem = nearest.explain(row)
    if problem is None:
        fix = f'write {{"spec": "{nearest.name}"}} into the sidecar, or add it to inbox.detect_specs'
        return RowProblem("spec_unknown", f"no spec is named and the rows look like {nearest.name}", None, "$", fix)
    told = problem.message.removeprefix(f"not {nearest.name}: ")
    message = f"no spec fits; nearest is {nearest.name}, but line {line}: {told}"
    return RowProblem("spec_unknown", message, None, problem.field, problem.fix or fix)


def too_few_fit(misfits: int, parsed: int) -> bool:
    """Did a detected spec lose too many rows after all?"""
    return misfits > (1 - FIT_SHARE) * parsed
