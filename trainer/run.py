"""One training run in memory: its checkpoint chain, its model and its state, always in step (arrow: trainer ->
checkpoints).

Reads    checkpoints/<run>/ to resume            Writes   commits through core.checkpoints.Catalogue
Errors   ConfigError when the settings no longer fit the run; CheckpointError when no whole checkpoint is left
Effects  a damaged newest checkpoint is set aside, and the jobs that only it covered go back to their lane; what an
         older one lost is trainer.mending's
"""

import importlib.metadata
import logging
import shutil
from functools import cached_property
from typing import Any  # manifests are JSON documents

import numpy as np
import torch

from core.chat_templates import ChatEncoder
from core.checkpoints import Catalogue, Checkpoint, ends_job
from core.errors import CheckpointError, ConfigError, ModelError, StorageError
from core.memory_estimate import method_for
from core.paths import Workspace
from core.settings import Settings
from trainer import mending, profiles, snapshot
from trainer.commits import BackgroundCommit
from trainer.config import dials
from trainer.config.precision import faster_on_cpu, tell
from trainer.engine import Engine, random_state
from trainer.mending import OnLost
from trainer.models import load
from trainer.models.lora import ADAPTER_WEIGHTS, add_adapter
from trainer.models.quantized import four_bits
from trainer.self_check import refuse_wrong_loss
from trainer.state import RECORD_DTYPE, JobProgress, Records, TrainState

logger = logging.getLogger(__name__)


class Run:
    """What is trained now. `head` is the newest commit on the disk.

    Attributes:
        loads: how often weights were read from the disk: 1 for as long as nothing is undone.
    """

    def __init__(self, workspace: Workspace, settings: Settings, on_lost: OnLost) -> None:
        """Open the run named in the settings, importing its base first when it has none.

        Args:
            on_lost: called with the ids of jobs whose commits are about to be taken back, before they are.
        """
        self.workspace = workspace
        self.settings = settings
        self.catalogue = Catalogue(workspace, settings.run)
        self.loads = 0
        self._on_lost = on_lost
        self._records: list[Records] = []
        self._commit: BackgroundCommit | None = None
        self._engine: Engine | None = None
        profiles.require_known(settings)
        dials.use_threads(settings.trainer.threads)
        self.head = self._open()
        self.state = snapshot.read_state(self.head)
        self._committed_step = self.state.step
        self._check_fit(settings)
        self.engine_ready()

    # -- opening --------------------------------------------------------------------------------------------------

    def _open(self) -> Checkpoint:
        mending.set_broken_aside(self.catalogue, self._on_lost)
        if (base_id := mending.lost_base(self.catalogue)) is not None:
            self._import_base_again(base_id)
        mending.take_back_cut_off(self.catalogue, self.workspace, self._on_lost)
        self.catalogue.copy_missing()
        manifests = self.catalogue.manifests()
        if not manifests:
            return self._import_base()
        load.refuse_other_base(self.settings, manifests[0])
        head = self._newest_whole()
        load.refuse_other_world(head.manifest, self._base())
        return head

    def _import_base_again(self, lost_id: str) -> None:
        logger.error("checkpoint-0 (%s) is gone: the base is imported again", lost_id)
        try:
            self._import_base(lost_id)
        except ModelError as error:
            raise CheckpointError(
                f"checkpoint-0 is gone, and model_path does not give its base: {error.message}",
                where=str(self.workspace.run_dir(self.settings.run)),
                fix="restore checkpoint-0 from a backup, put the run's base under model_path, or begin another `run`",
            ) from error

    def _import_base(self, wanted_id: str | None = None) -> Checkpoint:
        base = load.read_base(self.workspace, self.settings)
        wanted = self.settings.locked.base_model
        if wanted is not None and wanted not in (base.name, base.source, self.settings.model_path):
            logger.info("locked.base_model %s is imported from %s", wanted, base.source)
        method = method_for(self.settings.trainer.method, base.model.num_parameters())
        auto_precision = faster_on_cpu(base.model.config.get_text_config().hidden_size)
        staged = self.catalogue.stage(0)
        load.write_base(base, staged)
        torch.manual_seed(self.settings.trainer.seed)
        empty = np.zeros(0, RECORD_DTYPE)
        start = snapshot.Snapshot({}, None, {}, random_state(), TrainState(method, auto_precision).as_json(), empty)
        snapshot.write_resume_files(start, staged)
        name = wanted or base.name
        fields = self._fields(step=0, parent=None, base={"name": name, "sha256": None}, jobs=[], train_loss=None)
        return self.catalogue.commit(staged, fields | load.fingerprints(staged), wanted_id=wanted_id)

    def _newest_whole(self) -> Checkpoint:
        """The newest checkpoint whose every byte is as its manifest says; newer ones go aside."""
        while (head := self.catalogue.head()) is not None:
            problems = self.catalogue.verify(head, training=True)
            if not problems:
                self._take_back_after(head.id, self._on_lost)  # manifests of removed checkpoints behind a damaged one
                return head
            logger.error("checkpoint %s is damaged and set aside: %s", head.id, "; ".join(problems))
            self._on_lost({job["job_id"] for job in head.manifest["jobs"]})
            self.catalogue.set_aside(head)
        raise CheckpointError(
            "no whole checkpoint is left",
            where=str(self.workspace.run_dir(self.settings.run)),
            fix="restore a checkpoint folder from a backup, or begin another `run`",
        )

    def _check_fit(self, settings: Settings) -> None:
        method, wanted = self.state.method, settings.trainer.method
        if wanted is not None and wanted != method:
            raise ConfigError(
                f"trainer.method is {wanted!r}, run {settings.run!r} began with {method!r}",
                where="config.json",
                fix=f"set trainer.method to {method!r}, or name another `run`",
            )

    def adopt(self, settings: Settings) -> None:
        """Take changed settings for the jobs to come.

        Raises:
            ConfigError: they name another base, run, method or profile, which needs a restart or is refused.
        """
        profiles.require_known(settings)
        if settings.run != self.settings.run:
            raise ConfigError(
                f"run is {settings.run!r}, this trainer works on {self.settings.run!r}",
                where="config.json",
                fix="restart the daemon to begin the other run",
            )
        if settings.trainer.quantize != self.settings.trainer.quantize:
            raise ConfigError(
                f"trainer.quantize is {settings.trainer.quantize!r}, the base was loaded with "
                f"{self.settings.trainer.quantize!r}",
                where="config.json",
                fix="restart the daemon to load it anew",
            )
        load.refuse_other_base(settings, self.catalogue.manifests()[0])
        self._check_fit(settings)
        self.settings = settings

    # -- the model ------------------------------------------------------------------------------------------------

    def engine_ready(self) -> Engine:
        """The engine, loaded from `head` when it is not in memory."""
        if self._engine is None:
            base = self._base()
            trainer, known = self.settings.trainer, self.dials(self.settings)
            smaller = four_bits(
                trainer.quantize, method=self.state.method, device=known.device, compute_dtype=known.compute_dtype
            )
            model: Any = load.load_trunk(base, smaller, known.device)
            load.refuse_other_architecture(model.config, self.settings)
            if self.state.method == "lora":
                self._refuse_damaged(base)
                model = add_adapter(model, rank=trainer.lora_rank, seed=trainer.seed, base_folder=base.folder)
            self._engine = Engine(model, known)
            tell(known.compute_dtype, known.device, model.config.get_text_config().hidden_size)
            self._restore(self._engine)
            refuse_wrong_loss(self._engine)
        return self._engine

    def _refuse_damaged(self, base: Checkpoint) -> None:
        """An adapter is worth nothing on other weights than those it was trained on. Raises CheckpointError."""
        problems = self.catalogue.verify(base, training=False)
        if problems:
            raise CheckpointError(
                f"the base under the adapter is damaged: {'; '.join(problems)}",
                where=str(base.folder),
                fix="restore checkpoint-0 from a backup, or begin another `run`",
            )

    def release(self) -> None:
        """Drop the model from memory; `engine_ready` brings it back as of `head`. Commit first."""
        self._engine = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def encoder(self) -> ChatEncoder:
        """Tokenizer and template of the run; they never change within it."""
        return ChatEncoder.from_folder(self._base().folder)

    def dials(self, settings: Settings) -> dials.Dials:
        device = dials.choose_device()
        return dials.derive(
            settings,
            device=device,
            auto_precision=self.state.auto_precision,
            micro_batch_tokens=self.state.micro_batch_tokens,
        )

    def _base(self) -> Checkpoint:
        base = self.catalogue.base()
        if base is None:
            raise CheckpointError(
                "checkpoint-0 is gone", where=str(self.workspace.run_dir(self.settings.run)), fix="restore it"
            )
        return base

    def _restore(self, engine: Engine) -> None:
        snapshot.restore(engine, self.head)
        self.loads += 1

    # -- moving on ------------------------------------------------------------------------------------------------

    def record(self, passes: Records) -> None:
        """Note row passes that the weights now hold."""
        self._records.append(passes)

    @property
    def steps_since_commit(self) -> int:
        """Optimizer steps that no commit holds, one under way included."""
        return self.state.step - self._committed_step

    def begin_commit(self) -> None:
        """Copy where training stands and write it to the disk beside the steps that follow.

        Nothing to do when it is committed already. Raises StorageError when the commit before this one failed.
        """
        self.settle()
        if self.steps_since_commit == 0:
            return
        copy = snapshot.take(self.engine_ready(), self.state, self._records_so_far())
        self._records.clear()
        self._committed_step = self.state.step
        base, parent, job = self._base(), self.head, self.state.job
        fields = self._fields(
            step=self.state.step,
            parent=parent.id,
            base=base.manifest["base"],
            jobs=[job.manifest_entry()] if job else [],
            train_loss=job.loss_last if job else None,
        )

        def write() -> Checkpoint:
            staged = self.catalogue.stage(fields["step"])
            try:
                snapshot.write(copy, staged, base)
                return self.catalogue.commit(staged, fields | load.fingerprints(staged))
            except StorageError:
                shutil.rmtree(staged, ignore_errors=True)  # on a full disk the half of it that fitted is in the way
                raise

        self._commit = BackgroundCommit(write)

    def commit(self) -> Checkpoint:
        """Commit where training stands, and wait until it is on the disk. Raises StorageError."""
        self.begin_commit()
        return self.settle()

    def settle(self) -> Checkpoint:
        """Wait for the commit under way; `head` is then the newest one. Raises StorageError when it failed."""
        if self._commit is not None:
            commit, self._commit = self._commit, None
            self.head = commit.result()
        return self.head

    @property
    def committing(self) -> bool:
        """True while a commit is under way that `settle` would take over."""
        return self._commit is not None

    def look_at_commit(self) -> None:
        """Take over a commit that has come to its end, without waiting for one that has not. Raises StorageError."""
        if self._commit is not None and self._commit.settled:
            self.settle()

    def _records_so_far(self) -> Records:
        return np.concatenate([np.zeros(0, RECORD_DTYPE), *self._records])

    def _fields(self, **known: Any) -> dict[str, Any]:  # manifest values
        made_with = load.versions() | {"dropforge": importlib.metadata.version("dropforge")}
        return {
            "profile": self.settings.profile.name,
            "config_sha256": self.settings.sha256,
            "versions": made_with,
            **known,
        }

    # -- going back -----------------------------------------------------------------------------------------------

    def go_back_to(self, checkpoint_id: str, on_lost: OnLost) -> None:
        """Make weights, moments, random numbers, step and chain those of an earlier commit.

        Side effects: later commits move to .undone/, after `on_lost` was told of the jobs they hold.
        """
        self.settle()
        self._take_back_after(checkpoint_id, on_lost)
        self.reload()

    def forget_job(self, job_id: str) -> None:
        """Go back to the commit before a job's first one, or to `head` when it has none. `on_lost` is not told."""
        before = self.settle().id
        for manifest in reversed(self.catalogue.manifests()):
            before = manifest["id"]
            if all(job["job_id"] != job_id for job in manifest["jobs"]):
                break
        self.catalogue.undo_after(before)
        self.reload()

    def _take_back_after(self, checkpoint_id: str, on_lost: OnLost) -> None:
        manifests = self.catalogue.manifests()
        kept = next((i for i, m in enumerate(manifests) if m["id"] == checkpoint_id), len(manifests))
        lost = {job["job_id"] for manifest in manifests[kept + 1 :] for job in manifest["jobs"]}
        if manifests[kept + 1 :]:
            on_lost(lost)
            self.catalogue.undo_after(checkpoint_id)

    def reload(self) -> None:
        """Return to the newest commit on the disk, keeping the model object."""
        head = self.catalogue.head()
        if head is None:
            raise CheckpointError("no checkpoint is left", where=str(self.workspace.run_dir(self.settings.run)))
        self.head = head
        self._take_back_after(head.id, self._on_lost)  # what was to be gone back to may have lost its folder meanwhile
        self.state = snapshot.read_state(head)
        self._committed_step = self.state.step
        self._records.clear()
        if self.state.method == "lora" and not (head.folder / ADAPTER_WEIGHTS).exists():
            self._engine = None  # back at the base: its adapter begins afresh
        elif self._engine is not None:
            self._restore(self._engine)

    def covering(self, job_id: str) -> dict[str, Any] | None:
        """The manifest of the surviving commit that holds the last row of a job; None while there is none."""
        ends = (m for m in self.catalogue.manifests() if ends_job(m) and m["jobs"][-1]["job_id"] == job_id)
        return next(ends, None)

    def progress_of(self, job_id: str) -> JobProgress | None:
        """How far the job is, when it is the one the run stands in."""
        job = self.state.job
        return job if job is not None and job.job_id == job_id else None
