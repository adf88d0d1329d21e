"""Which files a checkpoint has seen, and which checkpoints have seen a file (beside the arrow: checkpoints).

Reads    the manifests of a run, verdicts of jobs that were never trained, status/deployment.json
Writes   nothing          Units  rows_trained counts row passes
Errors   NotFoundError for what neither a manifest nor a job knows
Used by  `dropforge lineage`, the monitor's /api/lineage/<sha256 or checkpoint>
"""

import re
from typing import Any  # manifests and verdicts are JSON documents

from core.checkpoints import Catalogue
from core.errors import NotFoundError
from core.paths import Workspace
from core.status import read_status
from core.verdicts import all_verdicts

_SHORTEST_SHA256 = 8  # hex digits of a sha256 that count as naming a file
_FILE_FACTS = ("job_id", "file", "sha256", "generator", "rows_trained")


def lineage(workspace: Workspace, run: str, wanted: str) -> dict[str, Any]:
    """Answer for a checkpoint (id, its start, step or `checkpoint-<step>`) or a file (sha256, its start, name, job id).

    Returns:
        `{"checkpoint" | "file", "files": [...], "checkpoints": [ids in chain order], "served": id | null}`. `served` is
        the checkpoint now serving when it is one of `checkpoints`.

    Raises:
        NotFoundError: nothing of that name.
    """
    manifests = Catalogue(workspace, run).manifests()
    position = _position(manifests, wanted)
    if position is not None:
        chain = manifests[: position + 1]
        ids = [m["id"] for m in chain]
        answer: dict[str, Any] = {"checkpoint": ids[-1], "files": files_in(chain), "checkpoints": ids}
    else:
        answer = _of_file(workspace, manifests, wanted)
    serving = (read_status(workspace.status_file("deployment.json")) or {}).get("serving")
    return {**answer, "served": serving if serving in answer["checkpoints"] else None}


def files_in(chain: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files of a chain in the order they were first trained; `rows_trained` as the last manifest states it."""
    files: dict[str, dict[str, Any]] = {}
    for manifest in chain:
        for job in manifest["jobs"]:
            files[job["job_id"]] = {key: job.get(key) for key in _FILE_FACTS}
    return list(files.values())


def _position(manifests: list[dict[str, Any]], wanted: str) -> int | None:
    """Where in the chain the named checkpoint stands; None when no manifest, or more than one, answers to the name."""
    for position, manifest in enumerate(manifests):
        if wanted in (manifest["id"], str(manifest["step"]), f"checkpoint-{manifest['step']}"):
            return position
    if not re.fullmatch(r"\d+-[0-9a-f]+", wanted):
        return None
    starts = [position for position, m in enumerate(manifests) if m["id"].startswith(wanted)]
    return starts[0] if len(starts) == 1 else None


def _of_file(workspace: Workspace, manifests: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    trained = [entry for entry in files_in(manifests) if _names(entry, wanted)]
    ids = {entry["job_id"] for entry in trained}
    untrained = [v for v in all_verdicts(workspace) if _names(v, wanted) and v["job_id"] not in ids]
    if not trained and not untrained:
        raise NotFoundError(
            f"neither a checkpoint nor a file of run {run_of(manifests)} answers to {wanted!r}",
            fix="dropforge checkpoints and dropforge jobs list what there is",
        )
    files = trained + [{key: v.get(key) for key in _FILE_FACTS} | {"rows_trained": 0} for v in untrained]
    first = next((i for i, m in enumerate(manifests) if ids & {job["job_id"] for job in m["jobs"]}), len(manifests))
    return {"file": files[0]["sha256"], "files": files, "checkpoints": [m["id"] for m in manifests[first:]]}


def run_of(manifests: list[dict[str, Any]]) -> str:
    """The run that manifests belong to, for messages."""
    return str(manifests[0]["run"]) if manifests else "(without checkpoints)"


def _names(entry: dict[str, Any], wanted: str) -> bool:
    lower = wanted.lower()
    by_content = len(lower) >= _SHORTEST_SHA256 and str(entry.get("sha256") or "").startswith(lower)
    return by_content or str(entry["job_id"]).lower() == lower or wanted == entry.get("file")
