"""Rows of earlier jobs mixed into a new one, against forgetting (arrow: queue -> trainer).

Reads    the token caches of finished jobs in queue/done/, in the order of the checkpoint chain
Units    passes of replayed rows are recorded under their own job with the epoch REPLAYED_EPOCH, so that every job's own
         row passes still add up to rows x epochs
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.checkpoints import ends_job
from core.errors import DropforgeError, NotFoundError
from core.job_queue import Job, JobQueue
from core.settings import Settings
from core.validation import TokenCache, token_cache_of
from trainer.run import Run

logger = logging.getLogger(__name__)


class ReplayPool:
    """All training rows of earlier jobs, end to end."""

    def __init__(self, sources: Sequence[tuple[str, TokenCache]]) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(cache) for _, cache in sources], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def draw(self, wanted: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """So many different rows of the pool, all of it when it is smaller."""
        return generator.choice(len(self), min(wanted, len(self)), replace=False)

    def locate(self, index: int) -> tuple[str, TokenCache, int]:
        """The job, its cache and the row's place in it."""
        source = int(np.searchsorted(self._ends, index, side="right"))
        job_id, cache = self._sources[source]
        return job_id, cache, index - (int(self._ends[source - 1]) if source else 0)


def pool_for(run: Run, job: Job, settings: Settings) -> ReplayPool:
    """The rows of every job that the run finished before this one; a job whose folder is gone is left out, with a
    warning."""
    if not settings.trainer.replay_ratio:
        return ReplayPool([])
    queue = JobQueue(run.workspace)
    finished = [m["jobs"][-1]["job_id"] for m in run.catalogue.manifests() if ends_job(m)]
    sources = []
    for job_id in finished:
        if job_id == job.job_id:
            continue
        try:
            earlier = queue.find(job_id)
            sources.append((job_id, token_cache_of(earlier, settings, run.workspace, run.encoder)))
        except (DropforgeError, NotFoundError) as error:
            logger.warning("job %s is not replayed: %s", job_id, error)
    return ReplayPool(sources)
