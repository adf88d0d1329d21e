"""Fixtures every test may use: a whole root in tmp_path, a frozen clock, waiting with a deadline."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.paths import Workspace

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository() -> Path:
    """The checkout the tests run in."""
    return REPOSITORY


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty ready root: all folders and a config.json that takes every default."""
    ws = Workspace(tmp_path / "root")
    ws.root.mkdir()
    ws.make_folders()
    ws.config_file.write_text("{}\n")
    return ws


class FrozenClock:
    """A monotonic clock that moves only when told. Call it for the time in seconds."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """wait_until(condition, seconds=20, what="..."): poll until true; fail by name at the deadline."""

    def wait(condition: Callable[[], object], seconds: float = 20.0, what: str = "the condition") -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come true within {seconds:g} s")
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (`$SHARED_DATA_DIR`, else ../shared/data)."""
    named = os.environ.get("SHARED_DATA_DIR")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    assert folder.is_dir(), f"no real data at {folder}: set SHARED_DATA_DIR to the folder that holds gsm8k/"
    return folder


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """A test that leaves a thread of its own running fails, after five seconds of grace."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5.0
    while leaked := [t for t in threading.enumerate() if t not in before and t.is_alive() and not _harmless(t)]:
        if time.monotonic() > deadline:
            pytest.fail(f"leaked threads: {[t.name for t in leaked]}")
        time.sleep(0.02)


def _harmless(thread: threading.Thread) -> bool:
    """Process-wide pools that libraries start once on first use and never end."""
    return thread.name.startswith(("tqdm_monitor", "execnet", "Dummy-"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own DROPFORGE_* and INFERENCE_* variables never reach a test."""
    for name in list(os.environ):
        if name.startswith(("DROPFORGE_", "INFERENCE_")):
            monkeypatch.delenv(name)
