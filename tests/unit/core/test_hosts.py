"""hosts.json reaches ssh and rsync, so nothing strange gets through."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from core.hosts import load_hosts
from core.paths import Workspace, builtin_config

SERVE = {"host": "10.0.0.2", "role": "inference", "ssh_user": "drop", "models_dir": "/srv/served"}


def write(root: Path, serve: dict[str, Any], local: str = "forge") -> Workspace:
    ws = Workspace(root)
    ws.hosts_file.parent.mkdir(parents=True, exist_ok=True)
    hosts = {"forge": {"host": "localhost", "role": "trainer"}, "serve": serve}
    ws.hosts_file.write_text(json.dumps({"hosts": hosts, "local_host": local}))
    return ws


def test_without_a_file_there_are_no_hosts(tmp_path: Path) -> None:
    assert load_hosts(Workspace(tmp_path)) is None


def test_the_serving_host_is_found_by_role(tmp_path: Path) -> None:
    hosts = load_hosts(write(tmp_path, {**SERVE, "services": {"inference": {"port": 99}}}))
    assert hosts is not None
    serving = hosts.serving()
    assert serving is not None
    assert (serving.id, serving.ssh_port, serving.url("inference", 1)) == ("serve", 22, "http://10.0.0.2:99")
    assert serving.url("other", 7) == "http://10.0.0.2:7"


def test_an_ipv6_address_is_bracketed(tmp_path: Path) -> None:
    hosts = load_hosts(write(tmp_path, {**SERVE, "host": "fe80::1"}))
    assert hosts is not None
    assert hosts.by_id["serve"].url("inference", 1) == "http://[fe80::1]:1"


def test_a_local_host_that_serves_is_preferred(tmp_path: Path) -> None:
    hosts = load_hosts(write(tmp_path, {**SERVE, "role": "both"}, local="serve"))
    assert hosts is not None
    assert hosts.serving() == hosts.local


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host", "-oProxyCommand=id"),
        ("host", "a b"),
        ("host", "a;b"),
        ("host", "$(id)"),
        ("host", "user@host"),
        ("host", "fe80::1%eth0"),
        ("host", "host\nx"),
        ("host", ""),
        ("ssh_user", "-x"),
        ("ssh_user", "a@b"),
        ("ssh_user", "a b"),
        ("ssh_port", "22;x"),
        ("ssh_port", 0),
        ("ssh_port", True),
        ("models_dir", "relative"),
        ("models_dir", "/srv/$(id)"),
        ("models_dir", "/srv/a b"),
        ("models_dir", "/srv/../etc"),
        ("models_dir", "/"),
        ("ssh_key", "/root/.ssh/id -oX"),
        ("ssh_known_hosts", "~/.ssh/known_hosts"),
        ("role", "boss"),
        ("surprise", 1),
        ("services", {"inference": {"port": 1, "health": "http://evil"}}),
    ],
)
def test_a_strange_value_is_refused_with_its_path(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"hosts\.serve"):
        load_hosts(write(tmp_path, {**SERVE, key: value}))


@pytest.mark.parametrize("path", ["/srv/served", "/root/.ssh/id_ed25519", "/a.b/c-d_e/.f/g"])
def test_ordinary_paths_are_accepted(tmp_path: Path, path: str) -> None:
    assert load_hosts(write(tmp_path, {**SERVE, "models_dir": path, "ssh_key": path})) is not None


def test_local_host_must_exist_and_the_file_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="local_host"):
        load_hosts(write(tmp_path, SERVE, local="nobody"))
    Workspace(tmp_path).hosts_file.write_text("{")
    with pytest.raises(ConfigError):
        load_hosts(Workspace(tmp_path))


def test_the_example_is_valid(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    ws.hosts_file.parent.mkdir(parents=True)
    ws.hosts_file.write_text((builtin_config() / "hosts.example.json").read_text())
    hosts = load_hosts(ws)
    assert hosts is not None
    assert hosts.serving() is not None
