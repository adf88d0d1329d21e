"""Taking a file out of the inbox and giving it a home, by renames that a crash cannot lose (arrow: inbox -> queue).

Reads    inbox/, inbox/.claim/<job_id>/
Writes   inbox/.claim/<job_id>/ {NAME, NAME.meta.json, .origin.json, verdict.json}, then one rename to
         queue/<lane>/<job_id>/ or inbox/rejected/<job_id>/; before that held-out rows to
         checkpoints/<run>/incoming/<job_id>.jsonl
Errors   StorageError when the disk refuses; a file that went away before the claim is None
Effects  fsyncs both sides of every rename; a hard link is copied, so that nobody outside can change what is trained
"""

import logging
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # verdicts are JSON documents

from core.atomic import fsync_dir, fsync_file, rename_durable, storage_error, write_json
from core.daemon.candidates import Candidate
from core.errors import DataError, StorageError
from core.job_queue import (
    SIDECAR_SUFFIX,
    TOKENS_FOLDER,
    VERDICT_FILE,
    Job,
    JobQueue,
    data_file_in,
    is_job_id,
    new_job_id,
    new_verdict,
)
from core.paths import WAITING_LANES, Workspace, display_name
from core.status import iso_now, read_status
from core.verdicts import audit_file

logger = logging.getLogger(__name__)

ORIGIN_FILE = ".origin.json"
HELD_OUT_FILE = ".held_out.jsonl"
_LINK_FOLDER = ".link"
_COPY_FILE = ".copy.tmp"
_ADDED_BY_GATES = {
    "validated_at",
    "validator_versions",
    "validation_passed",
    "validation_errors",
    "validation_warnings",
    "job_id",
}
_NOTES = {ORIGIN_FILE, HELD_OUT_FILE, _COPY_FILE}
_FINAL_STATES = ("queued", "rejected", "done", "held", "failed")


@dataclass(slots=True)
class Claim:
    """A file that is ours and not yet in the queue. `lane` is the one its folder (or a retry) asks for."""

    job_id: str
    folder: Path
    data: Path
    lane: str
    received_at: str

    @property
    def sidecar(self) -> Path:
        return self.data.with_name(self.data.name + SIDECAR_SUFFIX)

    @property
    def job(self) -> Job:
        """The claim seen as a job (its lane is not a queue lane yet)."""
        return Job(self.job_id, self.lane, self.folder)


def has_producer_part(sidecar: Path) -> bool:
    """True when a sidecar says anything beside what the gates have added to it (or is damaged: then it was dropped)."""
    if not os.path.exists(sidecar):  # Path.exists raises for a name too long to have a sidecar
        return False
    doc = read_status(sidecar)
    return doc is None or bool(doc.keys() - _ADDED_BY_GATES)


class ClaimDesk:
    """The only code that renames out of the inbox."""

    def __init__(self, workspace: Workspace, queue: JobQueue) -> None:
        self._workspace = workspace
        self._queue = queue
        self._last_id = queue.last_id()

    def issue_id(self) -> str:
        """The next job id, larger than every one before."""
        self._last_id = new_job_id(self._last_id)
        return self._last_id

    def take(self, candidate: Candidate) -> Claim | None:
        """Claim a settled file with its sidecar; None when it went away in between (no trace is left then).

        Raises:
            StorageError: the disk refuses; the file is still in the inbox, or in a claim that `recover` finishes.
        """
        job_id = self.issue_id()
        folder = self._workspace.claim_dir / job_id
        origin = {"lane": candidate.lane, "received_at": iso_now()}
        try:
            folder.mkdir()
            fsync_dir(self._workspace.claim_dir)
            write_json(folder / ORIGIN_FILE, origin, durable=False)
            links = os.lstat(candidate.path).st_nlink
            first = folder / _LINK_FOLDER / candidate.path.name if links > 1 else folder / candidate.path.name
            first.parent.mkdir(exist_ok=True)
            rename_durable(candidate.path, first)
        except (OSError, StorageError) as error:
            self._not_taken(candidate, folder, error)
            return None
        _unlink_hard_link(folder)
        claim = Claim(job_id, folder, folder / candidate.path.name, candidate.lane, origin["received_at"])
        self.join_sidecar(claim, candidate.path)
        return claim

    def _not_taken(self, candidate: Candidate, folder: Path, error: OSError | StorageError) -> None:
        """Leave no empty folder behind; a file that is simply gone is no error.

        When the rename was made and only its fsync failed, the claim stands and `recover` goes on with it.
        """
        name = candidate.path.name
        if not (os.path.lexists(folder / name) or os.path.lexists(folder / _LINK_FOLDER / name)):
            _remove_if_empty(folder)
            if not os.path.lexists(candidate.path):
                logger.info("a file went away before it was taken: %r", name)
                return
        if isinstance(error, OSError):
            raise storage_error(error, candidate.path) from error
        raise error

    def join_sidecar(self, claim: Claim, dropped_as: Path | None = None) -> bool:
        """Move the sidecar that lies in the inbox into the claim. Returns True when there was one."""
        places = [dropped_as.parent] if dropped_as is not None else self._drop_folders()
        for folder in places:
            source = folder / claim.sidecar.name
            if os.path.isfile(source) and not source.is_symlink() and not has_producer_part(claim.sidecar):
                claim.sidecar.unlink(missing_ok=True)
                rename_durable(source, claim.sidecar)
                return True
        return False

    def _drop_folders(self) -> list[Path]:
        inbox = self._workspace.inbox
        return [inbox, inbox / "high", inbox / "low"]

    def recover(self, known: Collection[str] = ()) -> list[Claim]:
        """Finish or pick up every claim left by an earlier daemon or a failed call, but those `known` to be in work.

        Returns those that still need the gates. Raises StorageError.
        """
        open_claims = []
        for name in sorted(os.listdir(self._workspace.claim_dir)):
            folder = self._workspace.claim_dir / name
            if is_job_id(name) and name not in known and folder.is_dir() and not folder.is_symlink():
                claim = self._recover_one(folder)
                if claim is not None:
                    open_claims.append(claim)
        return open_claims

    def _recover_one(self, folder: Path) -> Claim | None:
        _unlink_hard_link(folder)
        try:
            data = data_file_in(folder)
        except DataError:
            self._dissolve(folder)
            return None
        origin = read_status(folder / ORIGIN_FILE) or {}
        lane = origin.get("lane") if origin.get("lane") in WAITING_LANES else "normal"
        claim = Claim(folder.name, folder, data, str(lane), str(origin.get("received_at") or iso_now()))
        self.join_sidecar(claim)
        verdict = read_status(folder / VERDICT_FILE)
        if verdict is not None and verdict.get("state") in _FINAL_STATES:
            logger.info("finishing the move of %s", claim.job_id)
            self.send(claim, str(verdict["state"]), claim.lane)
            return None
        return claim

    def _dissolve(self, folder: Path) -> None:
        """A claim without data: give a lone sidecar back and remove the folder."""
        for sidecar in folder.glob(f"*{SIDECAR_SUFFIX}"):
            back = self._workspace.inbox / sidecar.name
            if not os.path.lexists(back):
                rename_durable(sidecar, back)
        if not _remove_if_empty(folder):
            logger.warning("a claim folder holds something unexpected and is left alone: %s", folder)

    def place(self, claim: Claim, verdict: dict[str, Any], lane: str, incoming: Path) -> str:
        """Write the verdict and move the folder to its home. `lane` counts for state `queued` only.

        Args:
            incoming: checkpoints/<run>/incoming/, where the held-out rows of an accepted file go.

        Returns the lane, or "rejected".
        """
        state = str(verdict["state"])
        held_out = claim.folder / HELD_OUT_FILE
        if state == "queued":
            _keep_held_out(held_out, incoming / f"{claim.job_id}.jsonl")
        else:
            held_out.unlink(missing_ok=True)
            shutil.rmtree(claim.folder / TOKENS_FOLDER, ignore_errors=True)
        if lane != claim.lane:
            write_json(claim.folder / ORIGIN_FILE, {"lane": lane, "received_at": claim.received_at}, durable=False)
        claim.job.write_verdict(verdict)
        return self.send(claim, state, lane)

    def send(self, claim: Claim, state: str, lane: str) -> str:
        """The last rename, for a claim whose verdict is written."""
        if state == "rejected":
            self._workspace.rejected_dir.mkdir(exist_ok=True)
            rename_durable(claim.folder, self._workspace.rejected_dir / claim.job_id)
            return state
        home = lane if state == "queued" else state
        self._queue.put(claim.folder, home)
        return home

    def cancel(self, claim: Claim) -> None:
        """Send a claim to failed/ with code `cancelled`."""
        verdict = new_verdict(
            job_id=claim.job_id,
            file=display_name(claim.data.name),
            state="failed",
            code="cancelled",
            message="cancelled before it was checked",
            fix=f"dropforge retry {claim.job_id}",
            received_at=claim.received_at,
            finished_at=iso_now(),
            bytes=claim.data.stat().st_size,
        )
        claim.job.write_verdict(verdict)
        self._queue.put(claim.folder, "failed")

    def back_to_claim(self, job: Job) -> Claim:
        """Take a job back, under its own id, as if it had just been claimed.

        Side effects: its verdict, its copy of the settings and its token cache are removed before the rename; a crash
        in between is finished by asking again.
        """
        data = job.data_file
        origin = read_status(job.folder / ORIGIN_FILE) or {}
        lane = origin.get("lane") if origin.get("lane") in WAITING_LANES else "normal"
        shutil.rmtree(job.tokens_folder, ignore_errors=True)
        audit_file(self._workspace, job.job_id).unlink(missing_ok=True)  # it is audited again
        job.settings_file.unlink(missing_ok=True)
        (job.folder / VERDICT_FILE).unlink(missing_ok=True)
        fsync_dir(job.folder)
        folder = self._workspace.claim_dir / job.job_id
        rename_durable(job.folder, folder)
        received = str(origin.get("received_at") or iso_now())
        return Claim(job.job_id, folder, folder / data.name, str(lane), received)

    def take_back_from_other_runs(self, run: str) -> list[str]:
        """At the start, before a trainer runs: what was let in for another run goes through the gates again.

        Which rows are held out, and how long each row is, a verdict says for one run and its tokenizer. A job without
        a verdict is one that an earlier call was taking back. Returns the ids. Raises StorageError.
        """
        for folder in self._workspace.claim_dir.iterdir():
            if is_job_id(folder.name) and _let_in_for(Job(folder.name, "claim", folder)) not in (run, "", None):
                (folder / VERDICT_FILE).unlink()  # `recover` would send it on to its lane
        jobs = [job for lane in (*WAITING_LANES, "active") for job in self._queue.jobs(lane)]
        taken = []
        for job in jobs:
            if _let_in_for(job) in (run, None):
                continue
            try:
                self.back_to_claim(job)
            except DataError as error:  # the trainer refuses it with the reason
                logger.error("not checked again for run %s: %s", run, error)
            else:
                taken.append(job.job_id)
        return taken


def _let_in_for(job: Job) -> str | None:
    """The run whose gates let a job in, "" without a verdict, None for one that does not say."""
    if not (job.folder / VERDICT_FILE).exists():
        return ""
    return (read_status(job.folder / VERDICT_FILE) or {}).get("run")


def _remove_if_empty(folder: Path) -> bool:
    """Remove a claim folder that holds nothing but our own notes. Never removes anything that was dropped."""
    try:
        for entry in list(folder.iterdir()):
            if entry.name in _NOTES or (entry.name.startswith(".") and entry.name.endswith(".tmp")):
                entry.unlink()
            elif entry.name == _LINK_FOLDER:
                entry.rmdir()
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True


def _keep_held_out(source: Path, target: Path) -> None:
    """Move the held-out rows to the judge's folder, replacing what an interrupted attempt left there."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        fsync_file(source)
        source.replace(target)
        fsync_dir(target.parent)
    except OSError as error:
        raise storage_error(error, target) from error


def _unlink_hard_link(folder: Path) -> None:
    """Turn a claimed hard link into a file of our own; safe to repeat after a crash at any point."""
    inside = folder / _LINK_FOLDER
    try:
        links = list(inside.iterdir())
    except FileNotFoundError:
        return
    for link in links:
        own = folder / link.name
        if not own.exists():
            copy = folder / _COPY_FILE
            copy.unlink(missing_ok=True)
            shutil.copyfile(link, copy)
            shutil.copystat(link, copy)
            fsync_file(copy)
            rename_durable(copy, own)
        link.unlink()
    inside.rmdir()
    fsync_dir(folder)
