"""A root whose base model is the embedded tokenizer, and files to put through its gates."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.atomic import write_json
from core.job_queue import SIDECAR_SUFFIX, Job, JobQueue, new_job_id
from core.paths import Workspace
from core.settings import Settings, load_settings
from core.validation.gate import GateContext, GateOutcome, run_gates
from trainer.models.tiny_tokenizer import main as make_tokenizer


def chat(index: int | str = 0, answer: str | None = None) -> dict[str, Any]:
    """One good chat row."""
    said = f"answer {index}" if answer is None else answer
    return {"messages": [{"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": said}]}


def lines(rows: Iterable[object]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class Gates:
    """Runs the real gates in a root of its own."""

    def __init__(self, root: Path, tokenizer: Path, **config: Any) -> None:
        self.workspace = Workspace(root)
        root.mkdir(parents=True, exist_ok=True)
        self.workspace.make_folders()
        self.workspace.config_file.write_text(json.dumps(config))
        shutil.copytree(tokenizer, root / "models" / "dropforge-tiny", dirs_exist_ok=True)
        self.settings: Settings = load_settings(self.workspace)
        self._last: str | None = None

    def claim(self, data: str | bytes, sidecar: object = None, name: str = "x.jsonl") -> Path:
        """A claim folder as the daemon makes it."""
        self._last = new_job_id(self._last)
        folder = self.workspace.claim_dir / self._last
        folder.mkdir()
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
        if sidecar is not None:
            text = sidecar if isinstance(sidecar, str | bytes) else json.dumps(sidecar)
            (folder / f"{name}{SIDECAR_SUFFIX}").write_bytes(text.encode() if isinstance(text, str) else text)
        return folder

    def run(self, folder: Path, lane: str = "normal") -> GateOutcome:
        """The gates over a claim folder."""
        return run_gates(folder, GateContext(self.workspace.root, folder.name, lane, self.settings))

    def queue(self, data: str | bytes, sidecar: object = None, name: str = "x.jsonl", lane: str = "normal") -> Job:
        """A file that the gates let in, in its lane."""
        folder = self.claim(data, sidecar, name)
        outcome = self.run(folder)
        assert outcome.state == "queued", outcome.verdict["message"]
        write_json(folder / "verdict.json", outcome.verdict)
        return JobQueue(self.workspace).put(folder, lane)

    def drop(self, data: str | bytes, sidecar: object = None, name: str = "x.jsonl") -> tuple[Path, dict[str, Any]]:
        """Claim a file and run the gates: the folder and the verdict."""
        folder = self.claim(data, sidecar, name)
        return folder, self.run(folder).verdict


def save_tokenizer(folder: Path) -> Path:
    """The embedded model's tokenizer."""
    make_tokenizer([str(folder)])
    return folder
