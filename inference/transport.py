"""rsync from the checkpoint's folder into the server's `incoming/`, locally or over ssh (arrow: publisher -> inference
server).

Reads    checkpoints/<run>/checkpoint-<step>/     Writes  models_dir/incoming/<id>/ on the serving host
Errors   MissingToolError (no rsync or ssh), StorageError (exit 4: disk full, no such folder), TransferError
         (connection; retryable)
Units    seconds
Effects  argv lists only, everything foreign after `--`; host keys are checked, never accepted blindly. Only the files
         of the manifest
         travel; equal content already on the server is hard-linked (by checksum: checkpoints of one model share sizes
         and often times)
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, MissingToolError, ResourceError, StorageError
from core.hosts import Host
from inference.inspection import PARTIAL_DIR

_SILENCE_S = 30
_CONNECT_S = 10
_WHOLE_S = 3600
_INSTALL = "apt-get install rsync openssh-client (both hosts need rsync)"
# Exit codes of rsync(1): 11 file i/o, 23 partial (with a full disk too); 10, 12, 30, 35 and ssh's 255: the connection.
_STORAGE_CODES = frozenset({3, 11, 13, 23, 24})
_CONNECTION_CODES = frozenset({5, 10, 12, 30, 35, 255, -9, -15, 20})


class TransferError(ResourceError):
    """The copy did not arrive; sending again continues it."""

    code = 3110
    slug = "transfer"


class HostKeyError(ResourceError):
    """The host is not the one we know; nothing was sent."""

    code = 3111
    slug = "host_key"
    retryable = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where checkpoints go: a folder here (`host` None) or on another machine."""

    models_dir: str
    host: Host | None

    def address(self, name: str) -> str:
        """The destination of `incoming/<name>` as rsync spells it."""
        path = f"{self.models_dir}/incoming/{name}/"
        if self.host is None:
            return path
        name_part = f"[{self.host.host}]" if ":" in self.host.host else self.host.host
        user = f"{self.host.ssh_user}@" if self.host.ssh_user else ""
        return f"{user}{name_part}:{path}"


def require_tools(target: Target) -> None:
    """Raises MissingToolError naming the package."""
    for tool in ("rsync",) if target.host is None else ("rsync", "ssh"):
        if shutil.which(tool) is None:
            raise MissingToolError(f"{tool} is not installed", fix=_INSTALL)


def ssh_command(host: Host) -> list[str]:
    """The ssh that rsync uses: no prompts, known hosts only, no waiting for ever."""
    argv = ["ssh", "-p", str(host.ssh_port)]
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": str(_CONNECT_S),
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "ForwardAgent": "no",
        "ClearAllForwardings": "yes",
    }
    if host.ssh_known_hosts is not None:
        options["UserKnownHostsFile"] = host.ssh_known_hosts
    if host.ssh_key is not None:
        options |= {"IdentityFile": host.ssh_key, "IdentitiesOnly": "yes"}
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    return argv


def rsync_argv(source: Path, target: Target, name: str, link_to: Sequence[str]) -> list[str]:
    """The command that copies the files listed on stdin.

    Args:
        name: folder below incoming/. link_to: folders of models_dir whose equal files are linked, not sent.
    """
    argv = [
        "rsync",
        "-rt",
        "-s",
        "--checksum",
        "--no-links",
        "--no-devices",
        "--no-specials",
        "--chmod=D755,F644",
        "--mkpath",
        f"--partial-dir={PARTIAL_DIR}",
        "--fsync",
        "--delete",
        f"--timeout={_SILENCE_S}",
        "--files-from=-",
        "--from0",
    ]
    argv += [f"--link-dest=../../{folder}" for folder in link_to]
    if target.host is not None:
        argv += ["-e", " ".join(ssh_command(target.host))]  # rsync splits at spaces; hosts.json allows none in any part
    return [*argv, "--", f"{source}/", target.address(name)]


def send(source: Path, files: Sequence[str], target: Target, name: str, link_to: Sequence[str]) -> None:
    """Copy the named files of a folder. Raises as the module's head says."""
    argv = rsync_argv(source, target, name, link_to)
    listed = b"".join(file.encode() + b"\0" for file in files)
    try:
        done = subprocess.run(argv, input=listed, capture_output=True, check=False, timeout=_WHOLE_S)
    except FileNotFoundError as error:
        raise MissingToolError("rsync is not installed", fix=_INSTALL) from error
    except subprocess.TimeoutExpired as error:
        raise TransferError(
            f"not done after {_WHOLE_S} s", where=target.address(name), fix="look at the network"
        ) from error
    if done.returncode != 0:
        raise _failure(done.returncode, done.stderr.decode(errors="replace"), target.address(name))


def _failure(code: int, said: str, where: str) -> Exception:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = " ".join(line for line in lines[:3])[:400] or f"rsync ended with {code}"
    if "Host key verification failed" in said or "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return HostKeyError(
            "the host key is not the known one; nothing was sent",
            where=where,
            fix="check the key on that host, then add it with ssh-keyscan to the known hosts",
        )
    if "Permission denied (" in said:
        return ConfigError("ssh refuses our key", where=where, fix="put the public key into authorized_keys there")
    if "No space left" in said or "Disk quota exceeded" in said or code in _STORAGE_CODES:
        return StorageError(first, where=where, fix="free space or mend the folder on the serving host")
    if "command not found" in said or code == 127:
        return MissingToolError("rsync is not installed on the serving host", where=where, fix=_INSTALL)
    return TransferError(first, where=where, fix="look at the network; publishing again continues")
