"""The files of deploy/: checked as far as they can be without a container engine or a machine of their own."""

import json
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

COMPOSE = ("forge", "serve")


def compose(repository: Path, name: str) -> dict[str, Any]:
    doc = yaml.safe_load((repository / "deploy" / f"compose.{name}.yaml").read_text())
    service: dict[str, Any] = doc["services"][name]
    return service


def instructions(repository: Path) -> list[tuple[str, str]]:
    text = (repository / "deploy" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]


def test_hadolint_has_nothing_to_say_about_the_dockerfile(repository: Path) -> None:
    tool = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([tool, "deploy/Dockerfile"], cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_somebody_who_is_not_root_and_tells_whether_it_lives(repository: Path) -> None:
    last = [word for word, _ in instructions(repository)][::-1].index("FROM")
    final = dict(instructions(repository)[-last:])
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final["USER"])
    assert "/health" in final["HEALTHCHECK"]
    assert final["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(final["ENTRYPOINT"]) + json.loads(final["CMD"]) == ["dropforge", "up"]


def test_what_the_dockerfile_copies_exists_and_is_not_ignored(repository: Path) -> None:
    allowed = {line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in instructions(repository):
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (repository / source).exists(), source
                assert source in allowed, source


def test_every_room_and_what_packing_needs_is_copied(repository: Path) -> None:
    copied = " ".join(rest for word, rest in instructions(repository) if word == "COPY")
    for needed in ("core", "trainer", "monitoring", "inference", "curriculum", "config", "setup.py", "constraints.txt"):
        assert needed in copied.split()


@pytest.mark.parametrize("name", COMPOSE)
def test_a_service_publishes_loopback_only_holds_no_key_and_cannot_rise(repository: Path, name: str) -> None:
    service = compose(repository, name)
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "environment" not in service
    assert service["env_file"] == "dropforge.env"
    assert "/deploy/dropforge.env" in (repository / ".gitignore").read_text()
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert not service.get("privileged")
    assert all(":/srv/dropforge" in volume for volume in service["volumes"])


@pytest.mark.parametrize("name", COMPOSE)
def test_a_service_runs_a_command_that_exists_with_settings_that_exist(
    repository: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.cli import COMMANDS
    from core.paths import Workspace
    from core.settings import load_settings

    monkeypatch.delenv("DROPFORGE_ROOT", raising=False)
    verb, *options = compose(repository, name)["command"]
    assert verb in COMMANDS
    assert options[::2] == ["--set"] * (len(options) // 2)
    assert load_settings(Workspace(repository), options[1::2]).inference.host == "0.0.0.0"


@pytest.mark.parametrize("name", ["dropforge.service", "dropforge-serve.service"])
def test_systemd_takes_the_unit_without_a_word(repository: Path, tmp_path: Path, name: str) -> None:
    unit = (repository / "deploy" / name).read_text()
    assert "NoNewPrivileges=yes" in unit
    (tmp_path / name).write_text(unit.replace("/opt/dropforge/.venv/bin/dropforge", "/bin/true"))
    argv = ["systemd-analyze", "verify", str(tmp_path / name)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
