"""Jobs and their verdicts, and the lanes they stand in (arrows: inbox -> intake -> queue -> trainer).

Reads    through Lanes: verdict.json of each job asked for; status/daemon.json for what the inbox ignores
"""

from collections.abc import Iterator

from core.errors import NotFoundError, UsageError
from core.job_queue import is_job_id
from core.paths import WAITING_LANES, Workspace
from core.status import read_status
from monitoring.api.lanes import CHECKING, REJECTED, SHOWN_LANES, Lanes
from monitoring.api.query import Document, Query

_SEARCHED = 2000  # verdicts read by one search; `next` goes on from there
_SHOWN_WAITING = 20
_SHOWN_IGNORED = 200
_STATES: dict[str, tuple[str, ...]] = {
    "queued": (CHECKING, *WAITING_LANES),
    "active": ("active",),
    "done": ("done",),
    "failed": ("failed",),
    "held": ("held",),
    "rejected": (REJECTED,),
}


class JobsPlugin:
    """/api/jobs: every verdict, oldest drop first, as `dropforge jobs`; the parameters bound the work."""

    name = "jobs"
    parameters = ("newest", "before", "state", "q")

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def read(self, query: Query) -> Document:
        """{"jobs": [verdict], "total": jobs in the states asked for, "next": id to go on `before`, or null}.

        `newest=N` gives the last N, `before=JOB_ID` only older ones, `state=done,failed` and `q=TEXT` those that match.
        """
        lanes, before = _lanes_of(query.text("state")), query.text("before")
        if before and not is_job_id(before):
            raise UsageError("before must be a job id", where="before", fix="take it from the last answer's `next`")
        newest = query.integer("newest", None, 1, 10_000)
        found, following = self._search(self._lanes.newest_first(lanes, before), query.text("q").casefold(), newest)
        return {"jobs": found, "total": sum(len(self._lanes.names(lane)) for lane in lanes), "next": following}

    def _search(
        self, jobs: Iterator[tuple[str, str]], wanted: str, most: int | None
    ) -> tuple[list[Document], str | None]:
        """Walk from the newest back, until enough is found or enough was read. Returns oldest first."""
        found: list[Document] = []
        last = None
        for position, (job_id, lane) in enumerate(jobs):
            if len(found) == most or (wanted and position >= _SEARCHED):
                return found[::-1], last
            verdict = self._lanes.verdict(job_id, lane)
            if verdict is not None and _mentions(verdict, wanted):
                found.append(verdict)
            last = job_id
        return found[::-1], None

    def find(self, key: str) -> Document:
        """{"jobs": [verdict], "lane", "sidecar"} of one job. Raises NotFoundError."""
        lane = self._lanes.find(key)
        verdict = self._lanes.whole(key, lane) if lane else None
        if lane is None or verdict is None:
            raise NotFoundError(f"no job {key[:60]!r}", fix="dropforge jobs lists them")
        return {"jobs": [verdict], "lane": lane, "sidecar": self._lanes.sidecar(key, lane)}


def _lanes_of(states: str) -> tuple[str, ...]:
    if not states:
        return SHOWN_LANES
    chosen: list[str] = []
    for state in states.split(","):
        if state not in _STATES:
            raise UsageError(f"no state {state[:40]!r}", where="state", fix=f"use {', '.join(_STATES)}")
        chosen += _STATES[state]
    return tuple(dict.fromkeys(chosen))


def _mentions(verdict: Document, wanted: str) -> bool:
    if not wanted:
        return True
    places = ("file", "job_id", "code", "message", "checkpoint", "sha256", "spec")
    return any(wanted in str(verdict.get(place) or "").casefold() for place in places)


class QueuePlugin:
    """/api/queue: the lanes, what waits next, what is in the gates and what the inbox leaves alone."""

    name = "queue"
    parameters = ()

    def __init__(self, workspace: Workspace, lanes: Lanes) -> None:
        self._workspace = workspace
        self._lanes = lanes

    def read(self, query: Query) -> Document:
        """{"lanes": {lane: n}, "active": [verdict], "waiting": [verdict], "checking": [id], "ignored": [...]}."""
        waiting = [(name, lane) for lane in WAITING_LANES for name in self._lanes.names(lane)[:_SHOWN_WAITING]]
        daemon = read_status(self._workspace.status_file("daemon.json")) or {}
        ignored = daemon.get("ignored") or []
        return {
            "lanes": self._lanes.counts(),
            "active": list(self._lanes.verdicts([(name, "active") for name in self._lanes.names("active")])),
            "waiting": list(self._lanes.verdicts(waiting[:_SHOWN_WAITING])),
            "checking": self._lanes.names(CHECKING)[:_SHOWN_WAITING],
            "ignored": ignored[:_SHOWN_IGNORED],
            "ignored_total": len(ignored),
        }
