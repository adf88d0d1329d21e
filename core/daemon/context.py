"""What every part of the daemon shares, built once by hand in __main__ (beside all arrows)."""

from dataclasses import dataclass, field

from core.daemon.config_watch import ConfigWatch
from core.daemon.events import EventLog
from core.daemon.wakeup import Wakeup
from core.job_queue import JobQueue
from core.paths import Workspace
from core.settings import Settings


@dataclass(slots=True)
class Blocks:
    """Why work stands still, by the part that says so: `{part: reason}`."""

    training: dict[str, str] = field(default_factory=dict)
    intake: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> str | None:
        """One reason for status/daemon.json: the intake's before the trainer's."""
        reasons = [*self.intake.values(), *self.training.values()]
        return reasons[0] if reasons else None


@dataclass(slots=True)
class Context:
    """Paths, settings, events and the reasons to stand still."""

    workspace: Workspace
    config: ConfigWatch
    queue: JobQueue
    events: EventLog
    wakeup: Wakeup
    blocks: Blocks = field(default_factory=Blocks)

    @property
    def settings(self) -> Settings:
        return self.config.settings

    @property
    def run(self) -> str:
        return self.config.settings.run
