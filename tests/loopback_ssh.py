"""A real sshd on a loopback port with throw-away keys, and the hosts.json that sends checkpoints through it."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.paths import Workspace
from serving_rig import ServerProcess, free_port


@dataclass(frozen=True, slots=True)
class LoopbackSshd:
    """`folder` holds client_key, other_key and known_hosts."""

    port: int
    folder: Path


@contextlib.contextmanager
def loopback_sshd(folder: Path) -> Iterator[LoopbackSshd]:
    """Run sshd until the block ends."""
    folder.mkdir(mode=0o700)
    for name in ("host_key", "client_key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    (folder / "authorized_keys").write_bytes((folder / "client_key.pub").read_bytes())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} " + (folder / "host_key.pub").read_text())
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile {folder}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nUsePAM no\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", config], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while b"listening" not in (folder / "log").read_bytes():
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.02)
        yield LoopbackSshd(port, folder)
    finally:
        process.terminate()
        process.wait(10)


def write_hosts(root: Workspace, server: ServerProcess, sshd: LoopbackSshd) -> Path:
    """Make the root publish over ssh. Returns the models_dir of the "other machine"."""
    models_dir = root.root.parent / "other-machine" / "served"
    hosts = {
        "forge": {"host": "localhost", "role": "trainer"},
        "serve": {
            "host": "127.0.0.1",
            "role": "inference",
            "ssh_user": "root",
            "ssh_port": sshd.port,
            "ssh_key": f"{sshd.folder}/client_key",
            "ssh_known_hosts": f"{sshd.folder}/known_hosts",
            "models_dir": str(models_dir),
            "services": {"inference": {"port": server.port}},
        },
    }
    root.hosts_file.parent.mkdir(exist_ok=True)
    root.hosts_file.write_text(json.dumps({"hosts": hosts, "local_host": "forge"}))
    return models_dir
