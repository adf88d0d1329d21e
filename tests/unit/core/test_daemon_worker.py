"""The worker process: answers in order, errors as they were, deaths named, nothing of multiprocessing left behind."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.daemon.background_worker import (
    BackgroundWorker,
    Finished,
    GateBugError,
    GateRequest,
    WorkerDiedError,
    WorkerNotStartedError,
    error_document,
    error_from,
)
from core.errors import DataError, ResourceError, StorageError
from core.paths import Workspace
from core.settings import load_settings

# A worker whose gate answers by the name of the claim folder.
FAKE = """
import json, os, sys
sys.stdout.write("ready\\n"); sys.stdout.flush()
for line in sys.stdin.buffer:
    name = os.path.basename(json.loads(line)["folder"])
    if name == "die":
        os._exit(9)
    if name == "hang":
        import time; time.sleep(60)
    text = "not json" if name == "garbage" else json.dumps({"verdict": {"job_id": name}, "lane": "low"})
    sys.stdout.write(text + "\\n"); sys.stdout.flush()
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundWorker]:
    (tmp_path / "fake_gate_worker.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = BackgroundWorker(lambda: None, "fake_gate_worker")
    yield made
    made.stop()


@pytest.fixture
def ask(worker: BackgroundWorker, workspace: Workspace) -> Callable[[str], None]:
    settings = load_settings(workspace, env={})

    def submit(name: str) -> None:
        worker.submit(name, GateRequest(workspace.claim_dir / name, workspace.root, name, "normal", settings))

    return submit


@pytest.fixture
def collect(worker: BackgroundWorker, wait_until: Callable[..., None]) -> Callable[[int], list[Finished]]:
    def wait(number: int) -> list[Finished]:
        found: list[Finished] = []

        def enough() -> bool:
            found.extend(worker.collect())
            return len(found) >= number

        wait_until(enough, what=f"{number} answers")
        return found

    return wait


def test_answers_come_in_the_order_asked(ask: Callable[[str], None], collect: Callable[..., list[Finished]]) -> None:
    for name in ("a", "b", "c"):
        ask(name)
    found = collect(3)
    assert [item.key for item in found] == ["a", "b", "c"]
    assert [item.result.verdict["job_id"] for item in found if item.result] == ["a", "b", "c"]


def test_a_death_is_told_for_all_that_waited_and_the_next_request_finds_a_new_process(
    ask: Callable[[str], None], collect: Callable[..., list[Finished]]
) -> None:
    for name in ("die", "b"):
        ask(name)
    assert [type(item.error) for item in collect(2)] == [WorkerDiedError, WorkerDiedError]
    ask("c")
    assert collect(1)[0].result is not None


def test_a_process_that_does_not_start_is_no_fault_of_the_files_that_waited(
    tmp_path: Path, worker: BackgroundWorker, ask: Callable[[str], None], collect: Callable[..., list[Finished]]
) -> None:
    (tmp_path / "fake_gate_worker.py").write_text("import no_such_package\n")
    for name in ("a", "b"):
        ask(name)
    assert [type(item.error) for item in collect(2)] == [WorkerNotStartedError, WorkerNotStartedError]
    (tmp_path / "fake_gate_worker.py").write_text(FAKE)
    ask("a")
    assert collect(1)[0].result is not None


def test_a_process_killed_while_idle_is_replaced_without_a_word(
    worker: BackgroundWorker, ask: Callable[[str], None], collect: Callable[..., list[Finished]]
) -> None:
    ask("a")
    collect(1)
    worker.kill()
    assert worker._ended.wait(10)
    ask("b")
    assert collect(1)[0].result is not None


def test_a_process_that_hangs_can_be_killed(
    worker: BackgroundWorker, ask: Callable[[str], None], collect: Callable[..., list[Finished]]
) -> None:
    ask("hang")
    assert worker._ready.wait(10)
    worker.kill()
    assert isinstance(collect(1)[0].error, WorkerDiedError)


def test_an_answer_that_is_no_json_is_the_gates_fault(
    ask: Callable[[str], None], collect: Callable[..., list[Finished]]
) -> None:
    ask("garbage")
    assert isinstance(collect(1)[0].error, GateBugError)


def test_errors_keep_what_decides_about_the_file_on_their_way() -> None:
    full = StorageError("No space left on device", where="/x")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    back = error_from(error_document(full))
    assert isinstance(back, OSError)
    assert back.errno == errno.ENOSPC
    assert isinstance(error_from(error_document(ResourceError("no tokenizer yet"))), ResourceError)
    known = error_from(error_document(DataError("odd", where="f", fix="mend it")))
    assert (str(known), type(known)) == ("f: odd (fix: mend it)", DataError)
    assert isinstance(error_from(error_document(ZeroDivisionError("x"))), GateBugError)
    memory = error_from(error_document(MemoryError()))
    assert isinstance(memory, OSError)
    assert memory.errno == errno.ENOMEM
