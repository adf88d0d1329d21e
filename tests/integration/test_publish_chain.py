"""From a committed checkpoint to an answer, through real rsync and a real server, and what happens on faults."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import requests

from core.checkpoints import Checkpoint
from core.errors import StorageError
from core.paths import Workspace
from core.settings import load_settings
from inference import publish
from loopback_ssh import LoopbackSshd, loopback_sshd, write_hosts
from serving_rig import ServerProcess, commit_adapter, ready_root, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three full checkpoints and two adapters, made once."""
    folder = tmp_path_factory.mktemp("serving") / "root"
    workspace, chain = ready_root(folder, (0, 10, 20))
    first = commit_adapter(workspace, 30, chain[-1], chain[0])
    commit_adapter(workspace, 40, first, chain[0])
    return folder


@pytest.fixture
def root(template_root: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(template_root, tmp_path / "root", symlinks=True)
    return Workspace(tmp_path / "root")


@pytest.fixture
def server(root: Workspace) -> Iterator[ServerProcess]:
    with running(root) as process:
        yield process


def ids(root: Workspace) -> dict[int, str]:
    manifests = [json.loads(p.read_text()) for p in root.run_dir("main").glob("checkpoint-*/MANIFEST.json")]
    return {m["step"]: m["id"] for m in manifests}


def deploy_doc(root: Workspace, checkpoint_id: str) -> dict[str, object]:
    doc = json.loads((root.evaluation_dir("main", checkpoint_id) / "deploy.json").read_text())
    assert isinstance(doc, dict)
    return doc


def test_a_published_checkpoint_answers_by_its_id_and_a_second_one_takes_over_and_is_rolled_back(
    root: Workspace, server: ServerProcess
) -> None:
    known = ids(root)
    assert server.get("/ready").status_code == 503
    assert server.publish("0").returncode == 0
    first = server.chat()
    assert first.headers["X-Dropforge-Checkpoint"] == first.json()["system_fingerprint"] == known[0]
    assert server.publish("10").returncode == 0
    second = server.chat()
    assert second.headers["X-Dropforge-Checkpoint"] == known[10]
    assert second.json()["choices"][0]["message"]["content"] != first.json()["choices"][0]["message"]["content"]
    listing = server.get("/v1/checkpoints").json()
    assert (listing["serving"], listing["previous"]) == (known[10], known[0])
    doc = deploy_doc(root, known[10])
    assert doc["ok"] is True
    assert doc["previous"] == known[0]
    assert server.publish("--rollback").returncode == 0
    assert server.chat().json()["choices"] == first.json()["choices"]
    assert os.readlink(root.root / "served" / "current") == known[0]


def test_publishing_what_serves_already_changes_nothing(root: Workspace, server: ServerProcess) -> None:
    assert server.publish("0").returncode == 0
    assert server.publish("0").returncode == 0
    assert deploy_doc(root, ids(root)[0])["changed"] is False
    assert server.get("/v1/checkpoints").json()["previous"] is None


def test_two_deployments_at_once_take_their_turns_and_a_rollback_to_what_is_gone_is_a_clear_no(root: Workspace) -> None:
    known = ids(root)
    with running(root, "inference.max_loaded=1") as server:
        assert server.publish("0").returncode == 0
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(server.publish, ("10", "20")))
        assert [one.returncode for one in done] == [0, 0] or "answers as" in done[0].stderr + done[1].stderr
        serving = server.get("/v1/checkpoints").json()["serving"]
        assert serving in (known[10], known[20])
        previous = server.get("/v1/checkpoints").json()["previous"]
        shutil.rmtree(root.root / "served" / previous)
        answer = server.post("/admin/rollback", {})
        assert answer.status_code == 409
        assert previous in answer.json()["error"]["message"]
        assert server.chat().headers["X-Dropforge-Checkpoint"] == serving


def test_adapters_are_served_on_their_base_and_equal_what_peft_computes(root: Workspace, server: ServerProcess) -> None:
    for step in (30, 40):
        done = server.publish(str(step))
        assert done.returncode == 0, done.stderr
        assert server.get("/v1/checkpoints").json()["serving"] == ids(root)[step]
    bases = list((root.root / "served" / "base").iterdir())
    assert len(bases) == 1
    body = {"text": [5, 6, 7, 8, 9, 10]}
    served = server.post("/v1/score", body).json()["loss"]
    script = (
        "import sys,torch;from peft import PeftModel;from transformers import AutoModelForCausalLM;"
        "m=AutoModelForCausalLM.from_pretrained(sys.argv[1]);m=PeftModel.from_pretrained(m,sys.argv[2]).eval();"
        "i=torch.tensor([[5,6,7,8,9,10]]);print(float(m(i,labels=i).loss))"
    )
    folders = [str(root.run_dir("main") / f"checkpoint-{step}") for step in (0, 40)]
    done = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True, check=True)
    assert served == pytest.approx(float(done.stdout.split()[-1]), abs=1e-4)


def test_an_adapter_whose_base_served_as_a_whole_model_survives_a_restart_and_sends_its_base_once(
    root: Workspace, server: ServerProcess
) -> None:
    known = ids(root)
    assert server.publish("0").returncode == 0
    assert server.publish("30").returncode == 0
    served = root.root / "served"
    assert [p.name for p in (served / "base").iterdir()] == server.get("/v1/checkpoints").json()["bases"]
    before = (served / "base").stat().st_mtime_ns
    assert server.publish("40").returncode == 0
    assert ((served / "base").stat().st_mtime_ns, list((served / "incoming").iterdir())) == (before, [])
    assert server.stop() == 0
    server.start(ready=True)
    assert server.chat().headers["X-Dropforge-Checkpoint"] == known[40]
    server.kill()
    weights = next((served / "base").iterdir()) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"evil")
    shutil.rmtree(served / known[40])
    server.start()
    done = server.publish("40")
    assert done.returncode == 0, "a base that is damaged over there is sent again"
    assert server.chat().headers["X-Dropforge-Checkpoint"] == known[40]


def test_a_judged_loss_that_the_server_cannot_reproduce_is_refused_and_the_old_model_serves(
    root: Workspace, server: ServerProcess
) -> None:
    known = ids(root)
    assert server.publish("0").returncode == 0
    folder = root.evaluation_dir("main", known[10])
    folder.mkdir(parents=True)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    lines = [{"schema": "samples.v1"}, {"suite": "incoming", "row": row, "nll": 0.5, "tokens": 2}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = server.publish("10")
    assert done.returncode == 5
    assert "canary loss" in done.stderr
    assert server.chat().headers["X-Dropforge-Checkpoint"] == known[0]
    listing = server.get("/v1/checkpoints").json()
    assert [(c["id"], c["state"]) for c in listing["checkpoints"]] == [(known[0], "serving"), (known[10], "bad")]
    (folder / "samples.jsonl").unlink()
    again = server.publish("10")
    assert again.returncode == 5
    assert "not tried again" in again.stderr


def test_a_server_restarts_on_current_and_falls_back_to_previous_when_current_is_broken(
    root: Workspace, server: ServerProcess
) -> None:
    known = ids(root)
    for step in ("0", "10"):
        assert server.publish(step).returncode == 0
    assert server.stop() == 0
    server.start()
    while (said := server.get("/v1/checkpoints").json())["serving"] is None:
        assert said["starting"], "whoever asks meanwhile must not take it for an empty server"
    assert not server.get("/v1/checkpoints").json()["starting"]
    assert server.chat().headers["X-Dropforge-Checkpoint"] == known[10]
    server.kill()
    weights = root.root / "served" / known[10] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    server.start(ready=True)
    assert server.chat().headers["X-Dropforge-Checkpoint"] == known[0]
    assert server.publish("10").returncode == 0
    assert server.chat().headers["X-Dropforge-Checkpoint"] == known[10]


def test_a_transfer_killed_halfway_shows_nothing_and_the_next_one_completes(
    root: Workspace, server: ServerProcess
) -> None:
    known = ids(root)
    assert server.publish("0").returncode == 0
    argv = [sys.executable, "-m", "inference.publish", *server.options(), "10"]
    shim = root.root / "bin"
    shim.mkdir()
    real = shutil.which("rsync")
    (shim / "rsync").write_text(
        f'#!/bin/sh\n{real} --bwlimit=100 "$@" & child=$!\nsleep 0.7; kill -9 $child; kill -9 $PPID\n'
    )
    (shim / "rsync").chmod(0o755)
    broken = subprocess.run(argv, env={**server.env, "PATH": f"{shim}:{os.environ['PATH']}"}, check=False, timeout=60)
    assert broken.returncode == -signal.SIGKILL
    assert server.chat().headers["X-Dropforge-Checkpoint"] == known[0]
    assert not (root.root / "served" / known[10]).exists()
    assert server.publish("10").returncode == 0
    assert server.chat().headers["X-Dropforge-Checkpoint"] == known[10]


def test_without_rsync_the_error_names_the_package(root: Workspace, server: ServerProcess) -> None:
    argv = [sys.executable, "-m", "inference.publish", *server.options(), "0"]
    done = subprocess.run(argv, env={**server.env, "PATH": "/nonexistent"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "rsync is not installed (fix: apt-get install rsync" in done.stderr


@pytest.fixture
def small_disk(root: Workspace) -> Iterator[Path]:
    """models_dir on a file system that holds one checkpoint and a half."""
    folder = root.root / "served"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_on_the_serving_host_is_exit_4_with_both_sizes_and_nothing_is_left_behind(
    root: Workspace, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ids(root)
    with running(root) as server:
        assert server.publish("0").returncode == 0
        refused = server.publish("10")
        assert refused.returncode == 4
        assert re.search(r"has \d\.\d MB free, this checkpoint needs \d\.\d MB", refused.stderr)
        monkeypatch.setattr(publish, "_require_room", lambda *_: None)  # the disk fills only while it is sent
        with pytest.raises(StorageError, match="No space left"):
            publish.Publisher(root, load_settings(root, [f"inference.port={server.port}"])).publish("10")
        assert not list((small_disk / "incoming").iterdir())
        assert server.chat().headers["X-Dropforge-Checkpoint"] == known[0]
        subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
        assert server.publish("10").returncode == 0
        assert server.chat().headers["X-Dropforge-Checkpoint"] == known[10]


def test_when_no_server_answers_the_publisher_says_so_and_writes_it_down(root: Workspace) -> None:
    server = ServerProcess(root, env={"INFERENCE_MAX_RETRIES": "0"})
    done = server.publish("0")
    assert done.returncode == 1
    assert "inference does not answer" in done.stderr
    assert deploy_doc(root, ids(root)[0])["ok"] is False


def test_streams_in_flight_finish_on_the_model_they_began_with_through_many_swaps(
    root: Workspace, server: ServerProcess, wait_until: Callable[..., None]
) -> None:
    known = ids(root)
    for step in ("0", "10"):
        assert server.publish(step).returncode == 0
    expected = {}
    for step in (0, 10):
        answer = server.chat(model=known[step], max_tokens=60)
        expected[known[step]] = answer.json()["choices"][0]["message"]["content"]
    failures: list[str] = []
    seen: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            named, text, fingerprints = stream_once(server)
            seen.append(named)
            if fingerprints != {named} or text != expected[named]:
                failures.append(f"{named}: {text!r}, {fingerprints}")

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(10):
            answer = server.post("/admin/rollback", {})
            assert answer.status_code == 200, answer.text
            begun_after = server.chat(max_tokens=1)
            assert begun_after.headers["X-Dropforge-Checkpoint"] == answer.json()["id"]
            wait_until(partial(_named_since, seen, len(seen), answer.json()["id"]), what="a stream on the new model")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert not failures
    assert set(seen) == set(expected)


def _named_since(seen: list[str], count: int, checkpoint: str) -> bool:
    return checkpoint in seen[count:]


def stream_once(server: ServerProcess) -> tuple[str, str, set[str]]:
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 60, "stream": True}
    text, fingerprints = "", set()
    with requests.post(server.url + "/v1/chat/completions", json=body, stream=True, timeout=60) as answer:
        assert answer.status_code == 200, answer.text
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                fingerprints.add(chunk["system_fingerprint"])
                text += chunk["choices"][0]["delta"].get("content") or ""
    return answer.headers["X-Dropforge-Checkpoint"], text, fingerprints


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[LoopbackSshd]:
    with loopback_sshd(tmp_path / "ssh") as process:
        yield process


def test_over_ssh_the_checkpoint_reaches_the_other_machine_and_a_foreign_host_key_stops_everything(
    root: Workspace, sshd: LoopbackSshd
) -> None:
    server = ServerProcess(root, env={"INFERENCE_API_KEY": "answers", "INFERENCE_ADMIN_KEY": "admin"})
    models_dir = write_hosts(root, server, sshd)
    server.overrides.append(f"inference.models_dir={models_dir}")
    try:
        server.start()
        done = server.publish("0")
        assert done.returncode == 0, done.stderr
        assert (models_dir / "current").is_symlink()
        key = {"Authorization": "Bearer answers"}
        assert server.get("/v1/checkpoints", headers=key).json()["serving"] == ids(root)[0]
        stranger = (sshd.folder / "other_key.pub").read_text()
        (sshd.folder / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} " + stranger)
        refused = server.publish("10")
        assert refused.returncode == 1
        assert "host key is not the known one" in refused.stderr
        assert not (models_dir / "incoming" / ids(root)[10]).exists()
        assert server.get("/v1/checkpoints", headers=key).json()["serving"] == ids(root)[0]
    finally:
        server.kill()


def test_nothing_of_training_and_no_pickle_travels(root: Workspace, server: ServerProcess) -> None:
    folder = root.run_dir("main") / "checkpoint-0"
    (folder / "optimizer.pt").write_bytes(b"never")
    assert server.publish("0").returncode == 0
    stored = {p.name for p in (root.root / "served" / ids(root)[0]).iterdir()}
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert stored == {*manifest["files"], "MANIFEST.json"}


def checkpoint_of(root: Workspace, step: int) -> Checkpoint:
    folder = root.run_dir("main") / f"checkpoint-{step}"
    return Checkpoint(folder, json.loads((folder / "MANIFEST.json").read_text()))
