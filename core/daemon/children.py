"""How trainer, judge and publisher are started: one place for argv and environment (beside all arrows).

They load the configuration that the daemon holds, never config.json, which may say by now what was refused.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from core.daemon.supervisor import Child, ChildSpec, Restart, Supervisor
from core.paths import HELD_CONFIG_VARIABLE, Workspace

# A torch team that spins while it waits starves its neighbours: with both cores busy elsewhere, a training step on
# two threads took 143-500 ms where one that sleeps took 33-69 ms (docs/log.md, "Threads").
SHARED_CPU = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}

# Exit codes of our own programs (contract section 1): another try of these ends the same way.
USAGE, GATE_FAILED = 2, 5


class Children:
    """The daemon's supervisor with its three children."""

    def __init__(self, workspace: Workspace, overrides: Sequence[str], supervisor: Supervisor) -> None:
        self._workspace = workspace
        self._supervisor = supervisor
        held = {HELD_CONFIG_VARIABLE: str(workspace.held_config_file)}
        self.environment = {**SHARED_CPU, **overrides_as_environment(overrides), **held}

    def __getitem__(self, name: str) -> Child:
        return self._supervisor[name]

    @property
    def supervisor(self) -> Supervisor:
        return self._supervisor

    def python(self, module: str, *arguments: str) -> tuple[str, ...]:
        """The argv of one of our modules on this root."""
        return (sys.executable, "-m", module, "--root", str(self._workspace.root), *arguments)

    def run(self, name: str, argv: tuple[str, ...], now: float) -> Child:
        """Start a program that ends by itself; failures are repeated with back-off, three times in a row at most."""
        child = self._supervisor.add(
            ChildSpec(
                name,
                argv,
                restart=Restart.ON_FAILURE,
                env=self.environment,
                fatal_after=3,
                final_codes=frozenset({USAGE, GATE_FAILED}),
                output=self._workspace.logs_dir / f"{name}.out",
            )
        )
        child.start(now)
        return child

    def known(self, name: str) -> bool:
        """Whether it was ever started."""
        return any(child.spec.name == name for child in self._supervisor)

    def at_rest(self, name: str) -> bool:
        """Not running, and not to be started again by itself."""
        return not self.known(name) or self._supervisor[name].at_rest

    def stop(self, name: str, now: float) -> None:
        if self.known(name):
            self._supervisor[name].stop(now)


def overrides_as_environment(overrides: Sequence[str]) -> Mapping[str, str]:
    """`--set section.key=value` as DROPFORGE_SECTION__KEY, so that every child loads the same settings."""
    pairs = [item.partition("=") for item in overrides]
    return {"DROPFORGE_" + key.strip().replace(".", "__").upper(): value for key, _, value in pairs}
