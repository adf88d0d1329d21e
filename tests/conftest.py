"""Fixtures every test may use: a whole root in tmp_path, a frozen clock, waiting with a deadline."""

import json
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
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real data beside the checkout (`$SHARED_DATA_DIR`, else ../shared/data): gsm8k/train.jsonl {question, answer}.

    Who has none gets rows of the same shape, made up; CI must have the real ones.
    """
    named = os.environ.get("SHARED_DATA_DIR")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if (folder / "gsm8k" / "train.jsonl").is_file():
        return folder
    assert not (named or os.environ.get("CI")), f"no gsm8k/train.jsonl in {folder}"
    made_up = tmp_path_factory.mktemp("data")
    (made_up / "gsm8k").mkdir()
    (made_up / "gsm8k" / "train.jsonl").write_text("".join(_word_problem(n) for n in range(400)))
    return made_up


def _word_problem(number: int) -> str:
    apples, days = 3 + number % 17, 2 + number % 11
    question = f"Ann picks {apples} apples a day for {days} days and gives {number} of her plums away. How many apples?"
    all_of_them = apples * days
    answer = f"She picks {apples} * {days} = <<{apples}*{days}={all_of_them}>>{all_of_them} apples.\n#### {all_of_them}"
    return json.dumps({"question": question, "answer": answer}) + "\n"


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
