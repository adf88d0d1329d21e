"""Files that are alike on purpose, and the background child run in this process."""

from pathlib import Path
from typing import Any

from core.daemon import audit_worker
from core.job_queue import Job
from core.verdicts import audit_of
from gate_kit import Gates, chat

STORY = "the quick brown fox jumps over the lazy dog while rain falls on all the old stone roofs of the town by the sea"


def make_farm(folder: Path, tokenizer: Path, level: str = "standard", **validation: Any) -> Gates:
    return Gates(folder / "root", tokenizer, validation={"level": level, **validation}, trainer={"held_out": 0})


def tell(topic: int | str, ending: str = "") -> dict[str, Any]:
    """A row of its own by its topic, alike by another ending."""
    words = " ".join(f"{word}{topic}" for word in STORY.split())
    return chat(f"{topic}", f"{words} {ending}".strip())


def audit(farm: Gates) -> None:
    audit_worker.run(farm.workspace, farm.settings)


def found(farm: Gates, job: Job) -> dict[str, Any]:
    doc = audit_of(farm.workspace, job.job_id)
    assert doc is not None
    facts = doc["facts"].get("duplicates", {})
    return {key: facts.get(key) for key in ("seen_before", "near_before", "near_in_file")}
