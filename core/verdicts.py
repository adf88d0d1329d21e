"""What became of every dropped file: the read side of queue/ and inbox/rejected/ for people (beside all arrows).

Reads    queue/<lane>/<job_id>/verdict.json, inbox/.claim/, inbox/rejected/, status/audits/     Writes  nothing
Errors   NotFoundError for a job that has no folder, or for a name that several answer to;
         a damaged verdict is shown by what its folder says, never raised
Used by  the CLI and the monitor, so that both print the same
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # verdicts are JSON documents of config/schemas/verdict.schema.json

from core.atomic import read_json
from core.errors import DataError, JsonError, NotFoundError, StorageError
from core.job_queue import VERDICT_FILE, data_file_in, is_job_id, new_verdict
from core.paths import CLAIM_FOLDER, LANES, WAITING_LANES, Workspace, display_name
from core.status import read_status

_SHORTEST_PART = 4  # characters of a job id that count as naming a job
_NAMED = 5  # candidates that a message lists
# For a waiting or active job the lane is the truth; an ended one states itself.
_STATE_OF_LANE = dict.fromkeys(WAITING_LANES, "queued") | {"active": "active"}


def all_verdicts(workspace: Workspace) -> list[dict[str, Any]]:
    """The verdict of every job that has a folder, oldest first, without the rows they show."""
    found = {folder.name: (folder, state) for folder, state in _folders(workspace)}
    return [brief(_verdict(*found[job_id])) for job_id in sorted(found)]


def job_ids(workspace: Workspace) -> set[str]:
    """The ids of all jobs that have a folder, without reading them."""
    return {folder.name for folder, _state in _folders(workspace)}


def verdict_of(workspace: Workspace, job_id: str) -> dict[str, Any]:
    """One job's verdict, without the rows it shows. Raises NotFoundError."""
    return brief(_verdict(*_find(workspace, job_id)))


def whole_verdict(workspace: Workspace, job_id: str) -> dict[str, Any]:
    """One job's verdict with the rows it shows and with what was found out since. Raises NotFoundError."""
    verdict, audit = _verdict(*_find(workspace, job_id)), audit_of(workspace, job_id)
    return verdict if audit is None else with_audit(verdict, audit)


def brief(verdict: dict[str, Any]) -> dict[str, Any]:
    """A verdict without the texts of rows, for lists and for what is kept elsewhere."""
    return {key: value for key, value in verdict.items() if key != "mask"}


def audit_of(workspace: Workspace, job_id: str) -> dict[str, Any] | None:
    """What the background child has found out about a job; None while it has not, or where that is damaged."""
    audit = read_status(audit_file(workspace, job_id)) or {}
    issues, facts = audit.get("issues"), audit.get("facts")
    if not isinstance(facts, dict) or not isinstance(issues, list):
        return None
    return audit if all(isinstance(issue, dict) and "code" in issue for issue in issues) else None


def audit_file(workspace: Workspace, job_id: str) -> Path:
    """Where the background child writes what it has found out about a job."""
    return workspace.audits_dir / f"{job_id}.json"


def audited_jobs(workspace: Workspace) -> set[str]:
    """The jobs that have an audit, without reading them. A folder of that name is none."""
    try:
        with os.scandir(workspace.audits_dir) as entries:
            return {Path(e.name).stem for e in entries if e.name.endswith(".json") and e.is_file()}
    except FileNotFoundError:
        return set()


def with_audit(verdict: dict[str, Any], audit: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict with what was found out later; merging the same again changes nothing."""
    codes = {issue["code"] for issue in audit["issues"]}
    kept = [issue for issue in verdict["issues"] if issue["code"] not in codes]
    facts = {"at": audit.get("at"), "report": audit.get("report"), **audit["facts"]}
    return verdict | {"issues": [*kept, *audit["issues"]], "audit": facts}


def folder_of(workspace: Workspace, job_id: str) -> Path:
    """Where everything about a job lies, refused and claimed files included. Raises NotFoundError."""
    return _find(workspace, job_id)[0]


def jobs_called(workspace: Workspace, wanted: str) -> list[str]:
    """The ids of the jobs that answer to a job id, a part of one, or the name of the dropped file, oldest first.

    Raises:
        NotFoundError: none does, or the part fits several ids (a file's name may: it can be dropped again).
    """
    known = job_ids(workspace)
    if wanted in known:
        return [wanted]
    parts = sorted(job_id for job_id in known if wanted in job_id) if len(wanted) >= _SHORTEST_PART else []
    if len(parts) == 1:
        return parts
    names = {wanted, display_name(wanted)}  # verdicts name files as they are shown
    named = [str(v["job_id"]) for v in all_verdicts(workspace) if names & {v["file"], display_name(str(v["file"]))}]
    if named:
        return named
    if parts:
        raise _several(wanted, parts)
    raise NotFoundError(f"no job {wanted!r}", fix="dropforge jobs lists them")


def job_called(workspace: Workspace, wanted: str) -> str:
    """The one job that answers to a name. Raises NotFoundError."""
    found = jobs_called(workspace, wanted)
    if len(found) > 1:
        raise _several(wanted, found)
    return found[0]


def _several(wanted: str, found: list[str]) -> NotFoundError:
    more = ", ..." if len(found) > _NAMED else ""
    candidates = ", ".join(found[-_NAMED:])
    return NotFoundError(f"{len(found)} jobs answer to {wanted!r}", fix=f"name one: {candidates}{more}")


def _find(workspace: Workspace, job_id: str) -> tuple[Path, str | None]:
    if is_job_id(job_id):
        for parent, state in _places(workspace):
            if (parent / job_id).is_dir():
                return parent / job_id, state
    raise NotFoundError(f"no job {job_id!r}", fix="dropforge jobs lists them")


def _places(workspace: Workspace) -> list[tuple[Path, str | None]]:
    """Every folder that holds job folders, in the order a job passes through them, and the state it stands for."""
    lanes = [(workspace.lane(lane), _STATE_OF_LANE.get(lane)) for lane in LANES]
    return [(workspace.claim_dir, "queued"), *lanes, (workspace.rejected_dir, None)]


def _folders(workspace: Workspace) -> list[tuple[Path, str | None]]:
    found = []
    for parent, state in _places(workspace):
        try:
            names = [name for name in os.listdir(parent) if is_job_id(name)]
        except FileNotFoundError:
            continue
        found += [(parent / name, state) for name in names]
    return found


def _data_name(folder: Path) -> str:
    try:
        return display_name(data_file_in(folder).name)
    except (DataError, OSError):  # it moves on at this moment, or a person has been at it
        return "?"


def _verdict(folder: Path, state: str | None) -> dict[str, Any]:
    try:
        verdict = read_json(folder / VERDICT_FILE)
    except (JsonError, StorageError) as error:
        fallback = folder.parent.name if state is None else state
        verdict = new_verdict(job_id=folder.name, state=fallback, file=_data_name(folder), code="unreadable")
        verdict["message"] = f"no readable verdict: {error.message}"
        if folder.parent.name == CLAIM_FOLDER:
            verdict |= {"code": "checking", "message": "it is being checked, or waits for that"}
    if state is not None:
        verdict["state"] = state
    return verdict
