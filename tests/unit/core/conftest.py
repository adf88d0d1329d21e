"""The gates over a root of their own, and a real PostgreSQL in a temporary folder, on a Unix socket only."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate_kit import Gates, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def gates(tmp_path: Path, tokenizer: Path) -> Gates:
    return Gates(tmp_path / "root", tokenizer)


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The URL of an empty database. PostgreSQL refuses root, so root hands it to the user `postgres`."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert found, "PostgreSQL is missing: apt-get install postgresql"
    programs = found[-1]
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="dropforge-pg-", dir="/tmp"))  # a socket's path must stay under 108 bytes
    if user:
        shutil.chown(folder, "postgres")

    def run(*argv: str) -> None:
        subprocess.run([*user, *argv], check=True, capture_output=True, cwd="/", timeout=60)

    data, control = str(folder / "data"), str(programs / "pg_ctl")
    run(str(programs / "initdb"), "--auth=trust", "--username=dropforge", "--no-sync", "-D", data)
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    run(control, "start", "--wait", "-D", data, "-o", options, "-l", str(folder / "log"))
    yield f"postgresql+psycopg://dropforge@/postgres?host={folder}"
    run(control, "stop", "--mode=immediate", "-D", data)
    shutil.rmtree(folder)
