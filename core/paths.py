"""Every path of a root, in one object: all arrows ask it, nobody else joins strings.

Reads    the folders upwards of the working folder, to find a root (the folder that holds config.json)
Errors   ConfigError when there is none
"""

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError

WAITING_LANES = ("high", "normal", "low")
ENDED_LANES = ("done", "failed", "held")
LANES = (*WAITING_LANES, "active", *ENDED_LANES)
CLAIM_FOLDER = ".claim"  # in the inbox: files that are being checked
# Tells what a daemon starts which file to take the configuration from: its own copy of what it holds. Its children
# would part from it otherwise, when config.json is edited to something it refused. No DROPFORGE_ prefix: those are
# settings.
HELD_CONFIG_VARIABLE = "_DROPFORGE_HELD_CONFIG"


def builtin_config() -> Path:
    """The `config/` folder that ships with the package: beside `core` in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    packed = package / "builtin_config"
    return packed if packed.is_dir() else package.parent / "config"


def find_root(cli_root: Path | None = None, env: Mapping[str, str] | None = None) -> Path:
    """Return the root: `--root`, else `$DROPFORGE_ROOT`, else the nearest parent that holds config.json.

    A child of a daemon takes the root it is given, config.json or not: the daemon holds a copy.

    Raises:
        ConfigError: no such folder, or none of them holds a config.json.
    """
    environment = env if env is not None else os.environ
    named = cli_root or environment.get("DROPFORGE_ROOT")
    if named:
        root = Path(named).absolute()
        if (root / "config.json").is_file() or HELD_CONFIG_VARIABLE in environment:
            return root
        raise ConfigError("there is no config.json here", where=str(root), fix=f"dropforge init {root}")
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError(
        "no config.json in this folder or above it", where=str(here), fix="dropforge init DIR, then cd DIR"
    )


def display_name(name: str | bytes | Path) -> str:
    """Spell an untrusted file name so that it is one line of valid UTF-8 with nothing invisible in it.

    Undecodable bytes, control characters and bidirectional overrides become `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN`.
    """
    text = os.fsdecode(name)
    return "".join(_escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: the byte the file system really holds
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return escape_of(code)
    return char


def escape_of(code: int) -> str:
    """The escape by which Python, and most readers, know a character of this number."""
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one root. Attributes are paths; nothing is created by asking."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "config.json"

    @property
    def held_config_file(self) -> Path:
        """The daemon's copy of the config.json that holds: the last one it took."""
        return self.status_file("last_good_config.json")

    @property
    def hosts_file(self) -> Path:
        return self.root / "config" / "hosts.json"

    def specs_dirs(self) -> list[Path]:
        """Built-in specs first, then the root's own, which add to them."""
        return self._config_dirs("specs")

    def suites_dirs(self) -> list[Path]:
        """Built-in suites first, then the root's own."""
        return self._config_dirs("suites")

    @property
    def own_suites_dir(self) -> Path:
        return self.root / "config" / "suites"

    def _config_dirs(self, kind: str) -> list[Path]:
        builtin, own = builtin_config() / kind, self.root / "config" / kind
        return [builtin] if builtin.resolve() == own.resolve() else [builtin, own]

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def control_dir(self) -> Path:
        return self.inbox / "control"

    @property
    def claim_dir(self) -> Path:
        return self.inbox / CLAIM_FOLDER

    @property
    def rejected_dir(self) -> Path:
        return self.inbox / "rejected"

    @property
    def queue_dir(self) -> Path:
        return self.root / "queue"

    def lane(self, name: str) -> Path:
        if name not in LANES:
            raise ValueError(f"no lane {name!r}")
        return self.queue_dir / name

    @property
    def checkpoints_dir(self) -> Path:
        return self.root / "checkpoints"

    @property
    def incomplete_dir(self) -> Path:
        return self.checkpoints_dir / ".incomplete"

    @property
    def undone_dir(self) -> Path:
        return self.checkpoints_dir / ".undone"

    def run_dir(self, run: str) -> Path:
        return self.checkpoints_dir / run

    def manifests_dir(self, run: str) -> Path:
        """Manifests and trained-row records of removed checkpoints."""
        return self.run_dir(run) / "manifests"

    def evaluation_dir(self, run: str, checkpoint_id: str) -> Path:
        return self.run_dir(run) / "evaluations" / checkpoint_id

    def incoming_dir(self, run: str) -> Path:
        """Held-out rows, one file a job."""
        return self.run_dir(run) / "incoming"

    def metrics_file(self, run: str) -> Path:
        return self.run_dir(run) / "metrics.jsonl"

    @property
    def status_dir(self) -> Path:
        return self.root / "status"

    def status_file(self, name: str) -> Path:
        return self.status_dir / name

    @property
    def logs_dir(self) -> Path:
        return self.status_dir / "logs"

    @property
    def audits_dir(self) -> Path:
        """What was found out about each job after it was let in: <job_id>.json, and <job_id>.html at level deep."""
        return self.status_dir / "audits"

    @property
    def row_index_dir(self) -> Path:
        """Signatures of all rows that were ever let in; made again from the job folders when it is lost."""
        return self.status_dir / "row_index"

    @property
    def lock_file(self) -> Path:
        """Held by the daemon and, through it, by its trainer."""
        return self.status_dir / "daemon.lock"

    def resolve(self, path: str) -> Path:
        """A path of a settings file: relative ones count from the root."""
        return self.root / path

    def folders(self) -> list[Path]:
        """Every folder that a ready root has."""
        return [
            self.control_dir,
            self.inbox / "high",
            self.inbox / "low",
            self.claim_dir,
            self.rejected_dir,
            *(self.lane(name) for name in LANES),
            self.incomplete_dir,
            self.undone_dir,
            self.logs_dir,
        ]

    def make_folders(self) -> None:
        """Create what is missing. Side effects: mkdir only, nothing is ever removed."""
        for folder in self.folders():
            folder.mkdir(parents=True, exist_ok=True)


def schema_file(name: str) -> Path:
    """`config/schemas/<name>.schema.json`, e.g. `config`, `verdict`, `manifest`."""
    return builtin_config() / "schemas" / f"{name}.schema.json"
