"""Layer 1: does every row obey its spec? Deny by default (arrow: intake)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any  # jobs and sidecars are JSON

from core.errors import DropforgeError
from core.formats import RowProblem
from core.lineage import Sidecar, SidecarError, check_sidecar
from core.validation.inspection import Inspection
from core.validation.plan import Plan
from core.validation.result import Issues, ValidationResult
from core.validation.specs import DatasetSpec


class SpecValidator:
    """Checks files against dataset specs.

    Args:
        specs: name -> spec, e.g. `DATASET_SPECS`.
        detect_specs: tried on files that name none.
    """

    def __init__(
        self,
        specs: Mapping[str, DatasetSpec],
        detect_specs: tuple[str, ...] = ("chat_sft_v1", "completion_v1"),
    ) -> None:
        self._plan = {"specs": specs, "detect_specs": detect_specs, "content": False}

    def validate_job(self, job: Mapping[str, Any], sidecar: Mapping[str, Any] | None = None) -> ValidationResult:
        """Check one job.

        Args:
            job: {"dataset": path, "spec": name or None}.
            sidecar: the producer's part, or None.

        Returns:
            The result; bad data never raises.
        """
        try:
            checked = check_sidecar(sidecar) if sidecar is not None else Sidecar()
            plan = Plan(spec=job.get("spec"), **self._plan)  # type: ignore[arg-type]  # fields of Plan by name
            return Inspection(Path(job["dataset"]), checked, plan).run()
        except SidecarError as error:
            return refused(RowProblem(error.slug, error.message, None, error.field, error.fix or None))
        except (DropforgeError, OSError, KeyError, TypeError) as error:
            fix = getattr(error, "fix", "") or "check that the job names a file that is there and may be read"
            return refused(RowProblem("unreadable", f"the job cannot be read: {error}", fix=fix))


def refused(problem: RowProblem) -> ValidationResult:
    """A result for a file that was refused as a whole."""
    issues = Issues()
    issues.error(problem)
    return issues.result({})
