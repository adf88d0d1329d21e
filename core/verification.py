"""Recounts what training promised: every accepted row exactly `epochs` times in the surviving weights (all arrows).

Reads    manifests, every file of every checkpoint, the trainer's records of trained rows, job folders and their data
Writes   nothing
Format   a record is numpy [("job", S32), ("row", u4), ("epoch", u2), ("hash", S16)]: the row passes since the parent
Units    rows count from 0, rows_trained counts row passes
         passes are counted by (run, job): a job of one run may have been checked again for another and trained there
Errors   none for what is broken: that is a problem in the answer; NotFoundError for an unknown checkpoint
Used by  `dropforge verify`; it believes no total, only the records and the data
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any  # manifests and verdicts are JSON documents

import numpy as np
from numpy.typing import NDArray

from core.atomic import sha256_file
from core.checkpoints import REPLAYED_EPOCH, TRAINED_ROWS_FILE, Catalogue
from core.errors import DropforgeError, NotFoundError
from core.job_queue import Job, data_file_in
from core.paths import Workspace
from core.validation.expected import JobRows, held_out_of
from core.verdicts import all_verdicts, folder_of

RECORD = np.dtype([("job", "S32"), ("row", "<u4"), ("epoch", "<u2"), ("hash", "S16")])
Records = NDArray[np.void]
Key = tuple[str, str]  # run, job id
_SHOWN = 3  # examples named in one problem
_PROMISED = ("done", "active", "queued", "failed", "held")
_FILE_FACTS = ("sha256", "job_id", "file", "rows", "rows_train", "rows_held_out", "rows_set_aside", "rows_dropped")


@dataclass(slots=True)
class Chain:
    """What the manifests of the examined checkpoints say, and what their records hold.

    The weights of two runs share nothing, so everything is counted by (run, job).

    Attributes:
        jobs: the last manifest's entry of a job: its counts are those of the whole job so far.
        standing: the job that each run has trained last, which may be half trained.
    """

    jobs: dict[Key, dict[str, Any]] = field(default_factory=dict)
    passes: dict[Key, Records] = field(default_factory=dict)
    standing: dict[str, str] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def runs_of(self, job_id: str) -> list[str]:
        """The runs that have trained rows of a job."""
        return [run for run, job in self.jobs if job == job_id]

    def run_of(self, checkpoint: str | None) -> str | None:
        """The run of a checkpoint; None when no manifest has it."""
        return next((c["run"] for c in self.checkpoints if c["id"] == checkpoint), None)


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
    verdicts = [v for v in all_verdicts(workspace) if not wanted or (run, v["job_id"]) in chain.jobs]
    files = [_examine(workspace, verdict, chain, run, whole=wanted is None) for verdict in verdicts]
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
        chain.problems += [] if wanted else catalogue.damage()
        manifests = catalogue.manifests()
        if wanted:
            manifests = catalogue.chain(catalogue.get(wanted).id)
        committed = {c.id: c for c in catalogue.committed()}
    except NotFoundError:
        raise
    except DropforgeError as error:
        chain.problems.append(str(error))
        return
    chain.problems += [
        f"{manifest['id']}: its folder is gone from run {catalogue.run}; retention never takes the base or the newest"
        for manifest in _ends(manifests)
        if manifest["id"] not in committed
    ]
    for manifest in manifests:
        checkpoint = committed.get(manifest["id"])
        found = catalogue.verify(checkpoint, training=True) if checkpoint else []
        chain.problems += found
        state = "removed" if checkpoint is None else "damaged" if found else "ok"
        chain.checkpoints.append({"id": manifest["id"], "step": manifest["step"], "run": catalogue.run, "state": state})
        _add_record(catalogue, manifest, chain)
        for entry in manifest["jobs"]:
            chain.jobs[catalogue.run, entry["job_id"]] = entry
            chain.standing[catalogue.run] = entry["job_id"]


def _ends(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return manifests if len(manifests) < 2 else [manifests[0], manifests[-1]]


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
    record = record[record["epoch"] != REPLAYED_EPOCH]  # beside the promise: every own pass is counted without them
    for job in np.unique(record["job"]):
        key = catalogue.run, job.decode("ascii", "replace")
        added = record[record["job"] == job]
        earlier = chain.passes.get(key)
        chain.passes[key] = added if earlier is None else np.concatenate([earlier, added])


def _examine(workspace: Workspace, verdict: dict[str, Any], chain: Chain, run: str, *, whole: bool) -> dict[str, Any]:
    """One file's line of the answer; what is wrong with it is added to the problems."""
    job_id, state = str(verdict["job_id"]), verdict["state"]
    let_in = str(verdict.get("run") or chain.run_of(verdict["checkpoint"]) or run)
    home = let_in if whole else run
    passes = chain.passes.get((home, job_id), np.empty(0, RECORD))
    facts = {key: verdict[key] for key in _FILE_FACTS}
    name = f"{verdict['file']} ({job_id})"
    problems = _data_problems(workspace, verdict) if state != "rejected" or verdict["sha256"] else []
    if state in _PROMISED:
        problems += _count_problems(verdict)
    due = whole and state == "done" and verdict["rows_train"] and not verdict["duplicate_of"]
    if home == let_in and (len(passes) or due):
        problems += _pass_problems(workspace, verdict, passes, chain.jobs.get((home, job_id)), home, whole=whole)
    if verdict["duplicate_of"] and len(passes):
        problems.append("it is a duplicate, yet rows of it were trained")
    for other in chain.runs_of(job_id):
        if other != let_in:
            found = _problems_elsewhere(workspace, other, job_id, chain)
            problems += [f"in run {other}: {problem}" for problem in found]
    chain.problems += [f"{name}: {problem}" for problem in problems]
    entry = chain.jobs.get((home, job_id))
    return {**facts, "epochs": entry["epochs"] if entry else None, "rows_trained": len(passes), "state": state}


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
    run: str,
    *,
    whole: bool,
) -> list[str]:
    """The heart: the records against the data. Every row the gates let through, `epochs` times, and no other."""
    if entry is None:
        return [f"it is done, but no manifest knows it: {verdict['rows_train']} rows were not trained"]
    state = verdict["state"]
    finished = (state == "done" and whole) or _finished(entry)
    problems = _record_problems(passes, entry, finished=finished)
    if whole and state not in ("done", "active"):
        problems.append(f"it is {state}, but {len(passes)} row passes of it are in the weights")
    stated = (verdict.get("training") or {}).get("rows_trained")
    if state == "done" and whole and stated != len(passes):
        problems.append(f"the verdict says {stated} row passes, the records hold {len(passes)}")
    try:
        problems += _content_problems(_job_rows(workspace, verdict, run), verdict, passes, finished)
    except (DropforgeError, OSError, ValueError) as error:
        problems.append(f"its rows cannot be read again: {error}")
    return problems


def _finished(entry: dict[str, Any]) -> bool:
    return bool(entry["rows_trained"] == entry["rows_train"] * entry["epochs"])


def _record_problems(passes: Records, entry: dict[str, Any], *, finished: bool) -> list[str]:
    """The records of one run against its manifests: no row twice in an epoch, and all of them when it is finished."""
    epochs = int(entry["epochs"])
    problems = []
    if len(passes) != entry["rows_trained"]:
        problems.append(f"the manifest says {entry['rows_trained']} row passes, the records hold {len(passes)}")
    pairs, times = np.unique(passes[["row", "epoch"]], return_counts=True)
    if (times > 1).any():
        problems.append(f"trained more than once in an epoch: {_rows(pairs['row'][times > 1])}")
    if (passes["epoch"] >= epochs).any():
        problems.append(f"trained in more than {epochs} epochs: {_rows(passes['row'][passes['epoch'] >= epochs])}")
    rows, seen = np.unique(pairs["row"], return_counts=True)
    if finished and (seen != epochs).any():
        problems.append(f"not trained exactly {epochs} times: {_rows(rows[seen != epochs])}")
    return problems


def _problems_elsewhere(workspace: Workspace, run: str, job_id: str, chain: Chain) -> list[str]:
    """What a run holds of a job that was checked again for another one since, after a change of `run`.

    The verdict speaks of the other run, whose tokenizer may let other rows in: the records are held against this run's
    own manifests and held-out rows. Half of a job may stand at its end; it is undone when the run is gone on with.
    """
    entry, passes = chain.jobs[run, job_id], chain.passes.get((run, job_id), np.empty(0, RECORD))
    problems = _record_problems(passes, entry, finished=_finished(entry))
    if not _finished(entry) and chain.standing[run] != job_id:
        problems.append(f"only {len(passes)} of {entry['rows_train'] * entry['epochs']} row passes were trained")
    try:
        held_out = held_out_of(workspace, run, job_id)
    except (OSError, ValueError) as error:
        return [*problems, f"its held-out rows cannot be read: {error}"]
    trained = np.isin(passes["hash"], np.array([digest[:16] for digest in held_out], dtype="S16"))
    if trained.any():
        problems.append(f"held out, yet trained: {_rows(passes['row'][trained])}")
    return problems


def _job_rows(workspace: Workspace, verdict: dict[str, Any], run: str) -> JobRows:
    folder = folder_of(workspace, str(verdict["job_id"]))
    return JobRows.of(Job(folder.name, folder.parent.name, folder), workspace, run)


def _content_problems(rows: JobRows, verdict: dict[str, Any], passes: Records, finished: bool) -> list[str]:
    """The rows trained are those that the file gives, with its content. Raises DataError, OSError."""
    given = [(number, digest[:16], digest in rows.held_out) for number, digest, _row in rows]
    numbers = np.array([number for number, _, held in given if not held], dtype=np.uint32)
    hashes = np.array([digest for _, digest, held in given if not held], dtype="S16")
    counts = {"rows_train": len(numbers), "rows_held_out": len(given) - len(numbers)}
    problems = [
        f"the file gives {key} {count}, the verdict says {verdict[key]}"
        for key, count in counts.items()
        if count != verdict[key]
    ]
    known = np.isin(passes["row"], numbers)
    if not known.all():
        problems.append(f"held out, set aside or not in the file, yet trained: {_rows(passes['row'][~known])}")
    missing = numbers[~np.isin(numbers, passes["row"])]
    if finished and len(missing):
        problems.append(f"never trained: {_rows(missing)}")
    if len(numbers):
        same = hashes[np.searchsorted(numbers, passes["row"][known])] == passes["hash"][known]
        if not same.all():
            problems.append(f"trained with another content than the file has: {_rows(passes['row'][known][~same])}")
    return problems


def _rows(rows: NDArray[np.uint32]) -> str:
    """`n rows (first: 4, 17, 23)`."""
    different = np.unique(rows)
    return f"{len(different)} rows (first: {', '.join(str(row) for row in different[:_SHOWN])})"


def _homeless(chain: Chain, known: set[str]) -> None:
    """Files that the weights have seen and that lie nowhere any more."""
    for (_run, job_id), entry in chain.jobs.items():
        if job_id not in known:
            chain.problems.append(f"{entry['file']} ({job_id}): trained, but its folder is gone from queue/")
