"""Recounts what training promised: every accepted row exactly `epochs` times in the surviving weights (all arrows).

Reads    manifests, every file of every checkpoint, the trainer's records of trained rows, job folders and their data
Writes   nothing
Format   a record is numpy [("job", S32), ("row", u4), ("epoch", u2), ("hash", S16)]: the row passes since the parent
Units    rows count from 0, rows_trained counts row passes
Errors   none for what is broken: that is a problem in the answer; NotFoundError for an unknown checkpoint
Used by  `dropforge verify`; it believes no total, only the records and the data
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any  # manifests and verdicts are JSON documents

import numpy as np
from numpy.typing import NDArray

from core.atomic import read_json, sha256_file
from core.checkpoints import TRAINED_ROWS_FILE, Catalogue
from core.errors import DropforgeError, NotFoundError
from core.formats import open_rows
from core.job_queue import SIDECAR_SUFFIX, data_file_in
from core.paths import Workspace
from core.validation.rows import rename_columns, row_sha256, shaped
from core.validation.specs import DatasetSpec, load_specs
from core.verdicts import all_verdicts, folder_of

RECORD = np.dtype([("job", "S32"), ("row", "<u4"), ("epoch", "<u2"), ("hash", "S16")])
Records = NDArray[np.void]
_SHOWN = 3  # examples named in one problem
_PROMISED = ("done", "active", "queued", "failed", "held")
_FILE_FACTS = ("sha256", "job_id", "file", "rows", "rows_train", "rows_held_out", "rows_set_aside", "rows_dropped")


@dataclass(slots=True)
class Chain:
    """What the manifests of the examined checkpoints say, and what their records hold."""

    manifests: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)  # the last entry of each job
    passes: dict[str, Records] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def verify(workspace: Workspace, run: str, wanted: str | None = None) -> dict[str, Any]:
    """Re-read and re-hash everything of a root, or everything up to one checkpoint.

    Args:
        run: where `wanted` is looked up. wanted: a checkpoint; then only its chain and the files in it are examined.

    Returns:
        `{"ok", "jobs": {state: n}, "files": [...], "checkpoints": [...], "problems": [...]}` of the contract.

    Raises:
        NotFoundError: there is no checkpoint `wanted`.
    """
    chain = Chain()
    runs = [run] if wanted else sorted({run, *_runs(workspace)})
    for name in runs:
        _read_chain(Catalogue(workspace, name), wanted, chain)
    specs = load_specs(workspace.specs_dirs())
    verdicts = [v for v in all_verdicts(workspace) if not wanted or v["job_id"] in chain.jobs]
    files = [_examine(workspace, verdict, chain, specs, whole=wanted is None) for verdict in verdicts]
    _homeless(chain, {str(v["job_id"]) for v in verdicts})
    return {
        "ok": not chain.problems,
        "jobs": dict(Counter(str(v["state"]) for v in verdicts)),
        "files": files,
        "checkpoints": chain.checkpoints,
        "problems": chain.problems,
    }


def _runs(workspace: Workspace) -> list[str]:
    folder = workspace.checkpoints_dir
    return [e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith(".")] if folder.is_dir() else []


def _read_chain(catalogue: Catalogue, wanted: str | None, chain: Chain) -> None:
    """Add one run: hash its checkpoints, read the records of its manifests."""
    try:
        manifests = catalogue.manifests()
        if wanted:
            manifests = catalogue.chain(catalogue.get(wanted).id)
        committed = {c.id: c for c in catalogue.committed()}
    except NotFoundError:
        raise
    except DropforgeError as error:
        chain.problems.append(str(error))
        return
    for manifest in manifests:
        checkpoint = committed.get(manifest["id"])
        found = catalogue.verify(checkpoint, training=True) if checkpoint else []
        chain.problems += found
        state = "removed" if checkpoint is None else "damaged" if found else "ok"
        chain.checkpoints.append({"id": manifest["id"], "step": manifest["step"], "run": catalogue.run, "state": state})
        _add_record(catalogue, manifest, chain)
        for entry in manifest["jobs"]:
            chain.jobs[entry["job_id"]] = entry
    chain.manifests += manifests


def _add_record(catalogue: Catalogue, manifest: dict[str, Any], chain: Chain) -> None:
    """Read which row passes a commit added. The base has trained nothing and needs no record."""
    if not manifest["jobs"]:
        return
    path = catalogue.trained_rows_file(manifest["id"])
    try:
        listed = manifest["training_files"][TRAINED_ROWS_FILE]["sha256"]
        if sha256_file(path) != listed:
            chain.problems.append(f"{path}: the record of trained rows is not the one that was committed")
        record = np.load(path, allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        chain.problems.append(f"{manifest['id']}: no readable record of trained rows ({error})")
        return
    if record.dtype != RECORD:
        chain.problems.append(f"{path}: the record has another layout: {record.dtype}")
        return
    for job in np.unique(record["job"]):
        name = job.decode("ascii", "replace")
        added = record[record["job"] == job]
        earlier = chain.passes.get(name)
        chain.passes[name] = added if earlier is None else np.concatenate([earlier, added])


def _examine(
    workspace: Workspace, verdict: dict[str, Any], chain: Chain, specs: dict[str, DatasetSpec], *, whole: bool
) -> dict[str, Any]:
    """One file's line of the answer; what is wrong with it is added to the problems."""
    job_id, state = str(verdict["job_id"]), verdict["state"]
    passes = chain.passes.get(job_id, np.empty(0, RECORD))
    entry = chain.jobs.get(job_id)
    epochs = entry["epochs"] if entry else None
    facts = {key: verdict[key] for key in _FILE_FACTS}
    name = f"{verdict['file']} ({job_id})"
    problems = _data_problems(workspace, verdict) if state != "rejected" or verdict["sha256"] else []
    if state in _PROMISED:
        problems += _count_problems(verdict)
    if len(passes) or (state == "done" and not verdict["duplicate_of"]):
        problems += _pass_problems(workspace, verdict, passes, entry, specs, whole=whole)
    if verdict["duplicate_of"] and len(passes):
        problems.append("it is a duplicate, yet rows of it were trained")
    chain.problems += [f"{name}: {problem}" for problem in problems]
    return {**facts, "epochs": epochs, "rows_trained": len(passes), "state": state}


def _data_problems(workspace: Workspace, verdict: dict[str, Any]) -> list[str]:
    """The data lies in the job's folder and is, byte for byte, what was accepted or refused."""
    try:
        data = data_file_in(folder_of(workspace, str(verdict["job_id"])))
        found = sha256_file(data)
    except (DropforgeError, OSError) as error:
        return [f"the data is not where it belongs: {error}"]
    if verdict["sha256"] is not None and found != verdict["sha256"]:
        return [f"the data has sha256 {found[:12]}, the verdict says {str(verdict['sha256'])[:12]}"]
    return []


def _count_problems(verdict: dict[str, Any]) -> list[str]:
    parts = ("rows_train", "rows_held_out", "rows_set_aside", "rows_dropped")
    total = sum(verdict[part] for part in parts)
    if total == verdict["rows"]:
        return []
    return [f"{' + '.join(f'{part} {verdict[part]}' for part in parts)} is {total}, not rows {verdict['rows']}"]


def _pass_problems(
    workspace: Workspace,
    verdict: dict[str, Any],
    passes: Records,
    entry: dict[str, Any] | None,
    specs: dict[str, DatasetSpec],
    *,
    whole: bool,
) -> list[str]:
    """The heart: the records against the data. Every row the gates let through, `epochs` times, and no other."""
    if entry is None:
        return [f"it is done, but no manifest knows it: {verdict['rows_train']} rows were not trained"]
    state, epochs, expected = verdict["state"], int(entry["epochs"]), int(verdict["rows_train"])
    problems = []
    if len(passes) != entry["rows_trained"]:
        problems.append(f"the manifest says {entry['rows_trained']} row passes, the records hold {len(passes)}")
    pairs, times = np.unique(passes[["row", "epoch"]], return_counts=True)
    if (times > 1).any():
        problems.append(f"trained more than once in an epoch: {_rows(pairs['row'][times > 1])}")
    if (passes["epoch"] >= epochs).any():
        problems.append(f"trained in more than {epochs} epochs: {_rows(passes['row'][passes['epoch'] >= epochs])}")
    rows, seen = np.unique(pairs["row"], return_counts=True)
    finished = (state == "done" and whole) or entry["rows_trained"] == entry["rows_train"] * epochs
    if finished and len(rows) != expected:
        problems.append(f"{len(rows)} different rows were trained, {expected} should have been")
    if finished and (seen != epochs).any():
        problems.append(f"not trained exactly {epochs} times: {_rows(rows[seen != epochs])}")
    if whole and state not in ("done", "active"):
        problems.append(f"it is {state}, but {len(passes)} row passes of it are in the weights")
    trained = (verdict.get("training") or {}).get("rows_trained")
    if state == "done" and whole and trained != len(passes):
        problems.append(f"the verdict says {trained} row passes, the records hold {len(passes)}")
    return problems + _content_problems(workspace, verdict, passes, specs)


def _content_problems(
    workspace: Workspace, verdict: dict[str, Any], passes: Records, specs: dict[str, DatasetSpec]
) -> list[str]:
    """The rows trained are rows of this file, and none of them is held out."""
    try:
        hashes = row_hashes(workspace, verdict, specs)
        held_out = _held_out(workspace, str(verdict["job_id"]))
    except (DropforgeError, OSError) as error:
        return [f"its rows cannot be read again: {error}"]
    problems = []
    beyond = passes["row"] >= len(hashes)
    if beyond.any():
        return [f"the file has {len(hashes)} rows, yet others were trained: {_rows(passes['row'][beyond])}"]
    different = hashes[passes["row"]] != passes["hash"]
    if different.any():
        problems.append(f"trained with another content than the file has: {_rows(passes['row'][different])}")
    leaked = np.isin(passes["hash"], held_out)
    if leaked.any():
        problems.append(f"held out, yet trained: {_rows(passes['row'][leaked])}")
    if verdict["rows_held_out"] != np.isin(hashes, held_out).sum():
        problems.append(
            f"{np.isin(hashes, held_out).sum()} rows lie held out, the verdict says {verdict['rows_held_out']}"
        )
    return problems


def row_hashes(workspace: Workspace, verdict: dict[str, Any], specs: dict[str, DatasetSpec]) -> NDArray[np.bytes_]:
    """The first 16 bytes of the hash of every row of a job's file, from the file itself; zeros where a row is unfit.

    Raises:
        NotFoundError: the verdict's spec does not exist. DropforgeError, OSError: the file cannot be read.
    """
    data = data_file_in(folder_of(workspace, str(verdict["job_id"])))
    spec = specs.get(str(verdict["spec"]))
    if spec is None:
        raise NotFoundError(f"there is no spec {verdict['spec']!r}", fix="put its file back into config/specs/")
    sidecar = data.with_name(data.name + SIDECAR_SUFFIX)
    columns = (read_json(sidecar).get("columns") if sidecar.is_file() else None) or spec.columns
    hashes = []
    for batch in open_rows(data).batches():
        for value in batch.values:
            row = rename_columns(value, columns) if isinstance(value, dict) else None
            hashes.append(row_sha256(shaped(row, spec.kind))[:16] if row is not None and spec.fits(row) else b"")
    return np.array(hashes, dtype="S16")


def _held_out(workspace: Workspace, job_id: str) -> NDArray[np.bytes_]:
    """The hashes of a job's held-out rows, from checkpoints/<run>/incoming/."""
    found = []
    for run in _runs(workspace):
        path = workspace.incoming_dir(run) / f"{job_id}.jsonl"
        if path.is_file():
            for batch in open_rows(path).batches():
                found += [bytes.fromhex(str(v["sha256"]))[:16] for v in batch.values if isinstance(v, dict)]
    return np.array(found, dtype="S16")


def _rows(rows: NDArray[np.uint32]) -> str:
    """`n rows (first: 4, 17, 23)`."""
    different = np.unique(rows)
    return f"{len(different)} rows (first: {', '.join(str(row) for row in different[:_SHOWN])})"


def _homeless(chain: Chain, known: set[str]) -> None:
    """Files that the weights have seen and that lie nowhere any more."""
    for job_id, entry in chain.jobs.items():
        if job_id not in known:
            chain.problems.append(f"{entry['file']} ({job_id}): trained, but its folder is gone from queue/")
