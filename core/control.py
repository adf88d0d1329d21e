"""What people ask for: the format of inbox/control/ files, written by the CLI and consumed by the daemon alone.

Reads    nothing          Writes  inbox/control/<name>, by rename
Format   bare commands `pause resume skip stop checkpoint` (empty, a reason, or JSON {"reason","by","release_gpu"});
         requests `<verb>-<anything>.json` holding JSON {"id", ...}
Units    at most 4 KB a file          Errors  ConfigError for a verb that does not exist; StorageError
"""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any  # request arguments are JSON values

from core.atomic import parse_json, storage_error, write_bytes
from core.errors import ConfigError, JsonError
from core.paths import Workspace

MAX_CONTROL_BYTES = 4096
# In the order in which they act when several stand.
COMMANDS = ("stop", "resume", "pause", "skip", "checkpoint")
REQUESTS = ("cancel", "retry", "promote", "rollback", "rewind", "pin", "evaluate", "suite")
KNOWN_NAMES = f"{', '.join(COMMANDS)}; VERB-ANYTHING.json for the verbs {', '.join(REQUESTS)}"


@dataclass(frozen=True, slots=True)
class ControlFile:
    """One parsed control file. `arguments` holds what its JSON said (`reason`, `by`, `release_gpu`, `id`, ...)."""

    name: str
    command: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_request(self) -> bool:
        return self.command in REQUESTS


def command_of(name: str) -> str | None:
    """The command a file name stands for, in any case; None when it is not a control file."""
    lower = name.lower()
    if lower in COMMANDS:
        return lower
    verb, dash, _rest = lower.partition("-")
    return verb if dash and lower.endswith(".json") and verb in REQUESTS else None


def parse_control(name: str, content: bytes) -> ControlFile:
    """Understand a control file.

    Raises:
        ConfigError: the name is no command, or a request has no JSON object with the "id" it needs.
    """
    command = command_of(name)
    if command is None:
        raise ConfigError(f"{name!r} is no control file", fix=f"use one of {KNOWN_NAMES}")
    if len(content) > MAX_CONTROL_BYTES:
        raise ConfigError(f"{name!r} is longer than {MAX_CONTROL_BYTES} bytes", fix="keep control files short")
    arguments = _arguments(name, content, is_request=command in REQUESTS)
    if command in REQUESTS and command != "rollback" and not isinstance(arguments.get("id"), str):
        raise ConfigError(f'{name!r} needs {{"id": "..."}}', fix=f"dropforge {command} ID writes it for you")
    return ControlFile(name, command, arguments)


def _arguments(name: str, content: bytes, *, is_request: bool) -> dict[str, Any]:
    text = content.strip()
    if not text:
        return {}
    if text.startswith(b"{"):
        try:
            doc = parse_json(text, name)
        except JsonError as error:
            raise ConfigError(error.message, where=error.where, fix="write strict JSON or plain text") from error
        return dict(doc)
    if is_request:
        raise ConfigError(f"{name!r} is not a JSON object", fix='write {"id": "..."}')
    return {"reason": text.decode("utf-8", "backslashreplace")}


def write_command(workspace: Workspace, command: str, **arguments: Any) -> None:  # JSON values
    """Ask for one of COMMANDS. Side effects: creates inbox/control/<command>.

    Raises:
        ConfigError: the daemon would not take it, e.g. for its length.
    """
    if command not in COMMANDS:
        raise ConfigError(f"no command {command!r}", fix=f"use one of {', '.join(COMMANDS)}")
    given = {key: value for key, value in arguments.items() if value}
    content = json.dumps(given).encode() if given else b""
    parse_control(command, content)
    _write(workspace, command, content)


def write_request(workspace: Workspace, verb: str, **arguments: Any) -> str:  # JSON values
    """Ask for one of REQUESTS; returns the file's name. Side effects: creates inbox/control/<verb>-<random>.json."""
    if verb not in REQUESTS:
        raise ConfigError(f"no request {verb!r}", fix=f"use one of {', '.join(REQUESTS)}")
    name = f"{verb}-{secrets.token_hex(6)}.json"
    content = json.dumps(arguments).encode()
    parse_control(name, content)
    _write(workspace, name, content)
    return name


def _write(workspace: Workspace, name: str, content: bytes) -> None:
    try:
        workspace.control_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, workspace.control_dir) from error
    write_bytes(workspace.control_dir / name, content)
