"""Which machine does what: config/hosts.json, strictly read, because its values reach ssh and rsync (trainer host ->
inference host).

Reads    config/hosts.json (ignored by git; config/hosts.example.json is the pattern to copy)
Format   config/schemas/hosts.schema.json: closed, every name, user, port and path held to a strict pattern
Errors   ConfigError naming the JSON path; without the file everything is one host
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # the file is JSON until the schema has checked it

import jsonschema_rs

from core.atomic import read_json
from core.errors import ConfigError, JsonError, StorageError
from core.paths import Workspace, schema_file
from core.settings import Settings

_SERVES = frozenset({"inference", "both"})
_REACHABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # what a bind to every address is called by


@dataclass(frozen=True, slots=True)
class Service:
    """A port of a host. `health` is the path that answers while the process lives."""

    port: int
    health: str


@dataclass(frozen=True, slots=True)
class Host:
    """One machine. `ssh_key` and `ssh_known_hosts` are absolute paths, None: as ssh itself is configured."""

    id: str
    name: str
    host: str
    role: str
    ssh_user: str | None
    ssh_port: int
    models_dir: str | None
    ssh_key: str | None
    ssh_known_hosts: str | None
    services: Mapping[str, Service]

    def url(self, service: str, default_port: int) -> str:
        """`http://host:port` of a service of this host."""
        port = self.services[service].port if service in self.services else default_port
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{port}"


@dataclass(frozen=True, slots=True)
class Hosts:
    """All machines of the farm, and which of them this one is."""

    by_id: Mapping[str, Host]
    local_id: str

    @property
    def local(self) -> Host:
        return self.by_id[self.local_id]

    def serving(self) -> Host | None:
        """The machine that serves: this one when its role says so, else the first other one that does."""
        if self.local.role in _SERVES:
            return self.local
        return next((host for host in self.by_id.values() if host.role in _SERVES), None)


def load_hosts(workspace: Workspace) -> Hosts | None:
    """Read config/hosts.json; None when there is none.

    Raises:
        ConfigError: not JSON, an unknown key, a value outside its pattern, or `local_host` names no host.
    """
    path = workspace.hosts_file
    if not path.exists():
        return None
    try:
        doc = read_json(path)
    except (JsonError, StorageError) as error:
        raise ConfigError(error.message, where=error.where, fix=f"mend {path}") from error
    validator = jsonschema_rs.validator_for(read_json(schema_file("hosts")))
    for problem in validator.iter_errors(doc):
        at = ".".join(str(part) for part in problem.instance_path)
        raise ConfigError(
            f"{at or 'the document'}: {problem.message[:200]}", where=str(path), fix=f"mend {at} in {path}"
        )
    by_id = {host_id: _host(host_id, part) for host_id, part in doc["hosts"].items()}
    if doc["local_host"] not in by_id:
        raise ConfigError(
            f"local_host: no host {doc['local_host']!r}", where=str(path), fix=f"one of: {', '.join(by_id)}"
        )
    return Hosts(by_id, doc["local_host"])


def serving_url(workspace: Workspace, settings: Settings) -> str:
    """Where the inference server answers as this host reaches it: hosts.json's serving host, else this one.

    Raises:
        ConfigError: hosts.json is refused.
    """
    hosts = load_hosts(workspace)
    serving = hosts.serving() if hosts is not None else None
    if hosts is not None and serving is not None and serving.id != hosts.local_id:
        return serving.url("inference", settings.inference.port)
    return bound_url(settings.inference.host, settings.inference.port)


def bound_url(host: str, port: int) -> str:
    """How this machine reaches what one of its own processes has bound."""
    host = _REACHABLE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _host(host_id: str, part: Mapping[str, Any]) -> Host:
    services = {
        name: Service(service["port"], service.get("health", "/health"))
        for name, service in part.get("services", {}).items()
    }
    return Host(
        id=host_id,
        name=part.get("name", host_id),
        host=part["host"],
        role=part["role"],
        ssh_user=part.get("ssh_user"),
        ssh_port=part.get("ssh_port", 22),
        models_dir=part.get("models_dir"),
        ssh_key=part.get("ssh_key"),
        ssh_known_hosts=part.get("ssh_known_hosts"),
        services=services,
    )
