"""init, config, doctor: making a root and finding out whether this machine can run it."""

import errno
import json
import os
import shutil
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from core.checkpoints import Catalogue
from core.cli import main
from core.commands import doctor, machine_checks, model_checks
from core.gpu import Gpu, GpuReading
from core.paths import Workspace
from core.settings import load_settings
from daemon_rig import commit

Capture = pytest.CaptureFixture[str]


def test_init_makes_a_root_that_every_part_accepts(tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "new"
    assert main(["init", str(root)]) == 0
    workspace = Workspace(root)
    assert all(folder.is_dir() for folder in workspace.folders())
    assert (root / "models" / "dropforge-tiny" / "tokenizer.json").is_file()
    written = json.loads(workspace.config_file.read_text())
    assert (root / written.pop("$schema")).resolve().is_file()
    assert load_settings(workspace, env={}).raw == written, "config.json must be complete"
    assert "dropforge up" in capsys.readouterr().out


def test_init_never_overwrites_a_root(workspace: Workspace, capsys: Capture) -> None:
    assert main(["init", str(workspace.root)]) == 2
    assert workspace.config_file.read_text() == "{}\n"
    assert "already" in capsys.readouterr().err


def test_init_into_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file" / "below")]) == 4


def test_doctor_passes_on_a_healthy_root_and_gives_json(workspace: Workspace, capsys: Capture) -> None:
    free = free_ports(3)
    argv = ["--set", f"inference.port={free[0]}", "--set", f"monitor.ports=[{free[1]}, {free[2]}]"]
    assert main(["doctor", "--json", *argv, "--root", str(workspace.root)]) == 0
    doc = json.loads(capsys.readouterr().out)
    names = [check["name"] for check in doc["checks"]]
    wanted = "python clock permissions filesystem disk inotify rsync ssh settings ports gpu torch memory"
    assert set(wanted.split()) <= set(names)
    assert doc["ok"] is True
    assert list(workspace.inbox.glob(".doctor*")) == []


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def test_doctor_names_the_setting_of_a_taken_port_and_exits_five(workspace: Workspace, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["doctor", "--set", f"inference.port={port}", "--root", str(workspace.root)]) == 5
    shown = capsys.readouterr().out
    assert f"port {port} on 127.0.0.1 is taken" in shown
    assert "inference.port" in shown


def test_doctor_goes_on_past_a_folder_that_cannot_be_listed(
    workspace: Workspace, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", "/root/queue")

    monkeypatch.setattr(machine_checks, "clock", refuse)
    monkeypatch.setattr(doctor, "settings_findings", refuse)
    assert main(["doctor", "--json", "--root", str(workspace.root)]) == 5
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    for name in ("clock", "root"):
        assert (checks[name]["status"], checks[name]["message"]) == ("FAIL", "/root/queue: Permission denied")
    assert {"disk", "ssh"} <= checks.keys()


def test_doctor_explains_a_refused_config_instead_of_ending(workspace: Workspace, capsys: Capture) -> None:
    workspace.config_file.write_text('{"hyperparam": {}}')
    assert main(["doctor", "--root", str(workspace.root)]) == 5
    shown = capsys.readouterr().out
    assert "unknown key hyperparam" in shown
    assert "PASS  python" in shown


def test_doctor_names_what_the_old_config_asks_for_and_cannot_get(workspace: Workspace) -> None:
    overrides = ["profile.name=emoji_think", "auto_generate.enabled=true"]
    finding = model_checks.unbuilt(load_settings(workspace, overrides, env={}))
    assert finding.status == "WARN"
    assert "emoji_think" in finding.message
    assert "auto_generate" in finding.message


def test_a_missing_program_is_a_failure_with_the_package_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    finding = machine_checks.program("rsync", "publishing")
    assert (finding.status, finding.fix) == ("FAIL", "apt-get install rsync")
    assert machine_checks.program("ssh", "publishing", needed=False).status == "WARN"


def test_rooms_on_two_filesystems_are_a_failure(workspace: Workspace) -> None:
    elsewhere = Path("/dev/shm") / f"dropforge-test-{os.getpid()}"
    elsewhere.mkdir()
    try:
        workspace.inbox.rename(workspace.root / "inbox-was-here")
        workspace.inbox.symlink_to(elsewhere)
        finding = machine_checks.one_filesystem(workspace)
    finally:
        elsewhere.rmdir()
    assert finding.status == "FAIL"
    assert "inbox/ is on another filesystem" in finding.message


def test_a_job_from_the_future_is_a_clock_that_went_back(workspace: Workspace) -> None:
    (workspace.lane("done") / "29990101T000000000000Z-abcdef").mkdir()
    assert machine_checks.clock(workspace).status == "WARN"


@pytest.mark.parametrize(
    ("built", "capability", "fits"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_90"], (8, 6), True),
        (["sm_80", "sm_90"], (7, 5), False),
        (["sm_80", "sm_90"], (12, 0), False),
        (["sm_90", "compute_90"], (12, 0), True),
        (["sm_90a"], (9, 0), True),
        ([], (8, 0), False),
    ],
)
def test_a_torch_build_fits_a_gpu_by_its_architectures(
    built: list[str], capability: tuple[int, int], fits: bool
) -> None:
    assert model_checks.supports(built, *capability) is fits


def test_a_gpu_that_the_installed_torch_cannot_see_is_a_failure() -> None:
    reading = GpuReading((Gpu("GPU-1", "Fake 9000", memory_total_bytes=24 << 30),), "999")
    finding = model_checks.torch_build(reading)
    assert finding.status == "FAIL"
    assert "sees no GPU" in finding.message


def test_a_lost_gpu_is_a_failure() -> None:
    assert model_checks.nvml(GpuReading((Gpu("GPU-1", state="lost", message="gone"),), "999")).status == "FAIL"


def write_model(folder: Path, *, hidden: int, layers: int) -> None:
    """A config.json and headers of safetensors files without any weights."""
    folder.mkdir(parents=True)
    config = {
        "num_attention_heads": 16,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * hidden,
        "vocab_size": 32_000,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [600_000, 1000]}})
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())


def test_the_memory_estimate_counts_parameters_and_knows_lora(workspace: Workspace) -> None:
    write_model(workspace.root / "models" / "big", hidden=1024, layers=12)
    reading = GpuReading((Gpu("GPU-1", memory_total_bytes=80_000_000_000),), "999")
    overrides = ["model_path=models/big", "model_name=big", "hyperparams.max_length=512"]
    fits = model_checks.memory(workspace, load_settings(workspace, overrides, env={}), reading)
    assert (fits.status, "600.0 M parameters, LoRA" in fits.message) == ("PASS", True)
    small = GpuReading((Gpu("GPU-1", memory_total_bytes=8_000_000_000),), "999")
    full = load_settings(workspace, [*overrides, "trainer.method=full"], env={})
    too_big = model_checks.memory(workspace, full, small)
    assert too_big.status == "FAIL"
    assert "trainer." in too_big.fix


@pytest.mark.parametrize(("wanted", "said"), [("bf16", "bf16, as set"), ("auto", "by a probe when run 'main' begins")])
def test_doctor_says_which_number_format_the_products_are_in(workspace: Workspace, wanted: str, said: str) -> None:
    settings = load_settings(workspace, [f"hyperparams.fp_precision={wanted}"], env={})
    assert said in model_checks.precision(workspace, settings).message


def test_doctor_names_a_gap_in_the_checkpoints_and_goes_on(workspace: Workspace) -> None:
    chain = [commit(workspace, step) for step in (0, 5, 10)]
    shutil.rmtree(chain[1].folder)
    Catalogue(workspace, "main").copies.forget(chain[1].id)
    finding = model_checks.precision(workspace, load_settings(workspace, env={}))
    assert (finding.status, chain[2].id in finding.message) == ("WARN", True)
    assert "put the missing checkpoint back" in finding.fix


def test_a_model_folder_that_is_damaged_is_a_failure_that_names_it(workspace: Workspace) -> None:
    folder = workspace.root / "models" / "bad"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    settings = load_settings(workspace, ["model_path=models/bad", "model_name=bad"], env={})
    finding = model_checks.memory(workspace, settings, GpuReading(no_driver=True))
    assert finding.status == "FAIL"
    assert "models/bad" in finding.message


def test_a_model_that_is_not_there_is_a_failure_unless_it_is_the_embedded_one(workspace: Workspace) -> None:
    none = GpuReading(no_driver=True)
    assert model_checks.memory(workspace, load_settings(workspace, env={}), none).status == "PASS"
    absent = load_settings(workspace, ["model_path=models/absent", "model_name=x"], env={})
    assert model_checks.memory(workspace, absent, none).status == "FAIL"
