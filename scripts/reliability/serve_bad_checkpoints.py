"""Damaged, bad and malicious checkpoints are published to a real server while somebody asks it: none ever answers.

    PYTHONPATH=tests python -m scripts.reliability.serve_bad_checkpoints [--damaged 430] [--seed 1]

Reads    nothing          Writes  a temporary root, removed at the end
Units    seconds
Errors   exit 5 when something was accepted, took longer than 10 s to refuse, answered a request, or ran code
Method   damaged: bytes differ from the announced manifest. Bad: whole, but unfit. Malicious: whole, with a canary that
         would be created by whoever loads it. The manifests of bad and malicious ones are right, as an attacker's would
         be
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
import torch
from safetensors.torch import load_file, save_file

from core.atomic import sha256_file
from core.checkpoints import MANIFEST_FILE, Checkpoint, expected_id
from serving_rig import ServerProcess, commit_adapter, place, ready_root, running

SLOWEST_S = 10.0
WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


def announce(folder: Path) -> dict[str, str]:
    """Make the manifest of a changed checkpoint right, id included, and put the folder under it."""
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    files = sorted(p for p in folder.iterdir() if p.name != MANIFEST_FILE and p.is_file())
    manifest["files"] = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}
    manifest["id"] = expected_id(manifest)
    path.write_text(json.dumps(manifest))
    shutil.move(folder, folder.parent / manifest["id"])
    return {"id": manifest["id"], "manifest_sha256": sha256_file(folder.parent / manifest["id"] / MANIFEST_FILE)}


# -- damage: the bytes are not those of the manifest ------------------------------------------------------------------


def damage(folder: Path, dice: random.Random) -> str:
    """Damage one file in one way. Returns what was done."""
    names = sorted(p.name for p in folder.iterdir())
    kind = dice.choice(["flip"] * 4 + ["cut"] * 3 + ["zero", "more", "missing", "foreign", "nan"])
    name = dice.choice([WEIGHTS, WEIGHTS, *names])
    path = folder / name
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del data[dice.randrange(len(data)) :]
    elif kind == "zero":
        name, path = WEIGHTS, folder / WEIGHTS
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    elif kind == "more":
        data += b"\0"
    elif kind == "nan":
        name, path = WEIGHTS, folder / WEIGHTS
        data = bytearray(path.read_bytes())
        data[-4:] = b"\x00\x00\xc0\x7f"
    if kind == "missing":
        path.unlink()
    elif kind == "foreign":
        name = dice.choice(["extra.json", "optimizer.pt", "evil.py", "pytorch_model.bin", ".hidden"])
        (folder / name).write_bytes(b"x")
    else:
        path.write_bytes(data)
    return f"{kind} {name}"


# -- bad: whole, but unfit --------------------------------------------------------------------------------------------


def weights(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Change:
    """A change of the tensors; None leaves one out."""

    def apply(folder: Path) -> None:
        changed = {name: change(name, tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file({n: t for n, t in changed.items() if t is not None}, folder / WEIGHTS, {"format": "pt"})

    return apply


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content) and None


def field(name: str, **values: Any) -> Change:
    def apply(folder: Path) -> None:
        path = folder / name
        doc = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**doc, **values}))

    return apply


def _noise(_name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(tensor) * 30


BAD: dict[str, Change] = {
    "garbage weights": weights(_noise),
    "NaN in one layer": weights(lambda n, t: torch.full_like(t, float("nan")) if "layers.1.mlp" in n else t),
    "infinite weights": weights(lambda n, t: torch.full_like(t, float("inf")) if "layers.0.mlp" in n else t),
    "a tensor is missing": weights(lambda n, t: None if "layers.0.self_attn.q" in n else t),
    "a tensor of another shape": weights(lambda n, t: t[:, :-8].clone() if "layers.0.mlp.up" in n else t),
    "a template that does not parse": text("chat_template.jinja", "{% for m in messages %}"),
    "a template that takes for ever": text(
        "chat_template.jinja", "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    ),
    "a tokenizer that is none": text("tokenizer.json", '{"model": {"type": "BPE"}}'),
    "a configuration of another model": field("config.json", num_hidden_layers=9),
}


def wrong_base(checkpoint: Checkpoint, folder: Path) -> None:
    """An adapter that names a base nobody has."""
    for name in (*checkpoint.manifest["files"], MANIFEST_FILE):
        shutil.copyfile(checkpoint.folder / name, folder / name)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["base"]["sha256"] = "f" * 64
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


# -- malicious: whoever loads it runs code ----------------------------------------------------------------------------


def malicious(canary: Path) -> dict[str, Change]:
    """What runs code in libraries that load carelessly."""
    payload = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    touch = f"open({str(canary)!r}, 'w')\n"
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
    module = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoTokenizer": "modeling_evil.Evil"}

    def pickled(name: str) -> Change:
        return lambda folder: (folder / name).write_bytes(payload) and None

    def with_code(folder: Path) -> None:
        (folder / "modeling_evil.py").write_text(touch)
        field("config.json", auto_map=module)(folder)

    return {
        "a pickled model": pickled("pytorch_model.bin"),
        "a pickled optimizer": pickled("optimizer.pt"),
        "pickled training arguments": pickled("training_args.bin"),
        "a pickled random state": pickled("rng_state.pth"),
        "a pickled adapter": pickled("adapter_model.bin"),
        "a module": text("modeling_evil.py", touch),
        "auto_map with its module": with_code,
        "auto_map alone": field("config.json", auto_map=module),
        "auto_map of the tokenizer": field("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}),
        "a kernel from a hub": field("config.json", attn_implementation="evil/kernel", use_kernels=True),
        "a template that reaches for the interpreter": text("chat_template.jinja", template),
        "a link out of the folder": lambda folder: (folder / "extra.json").symlink_to("/etc/passwd"),
    }


# -- publishing them --------------------------------------------------------------------------------------------------


class Asker(threading.Thread):
    """Asks all the time; remembers every checkpoint that answered."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__()
        self._server = server
        self.stop = threading.Event()
        self.answered_by: set[str] = set()
        self.failures: list[str] = []
        self.requests = 0

    def run(self) -> None:
        while not self.stop.wait(0.01):
            try:
                answer = self._server.chat("hello", max_tokens=4)
            except requests.RequestException as error:
                self.failures.append(str(error))
                continue
            self.requests += 1
            self.answered_by.add(answer.headers["X-Dropforge-Checkpoint"])
            if answer.status_code != 200:
                self.failures.append(answer.text)


class Trial:
    """Publishes copies of one sound checkpoint, changed."""

    def __init__(self, server: ServerProcess, sound: Checkpoint) -> None:
        self.server = server
        self.sound = sound
        self.models_dir = server.workspace.root / "served"
        self.slowest_s = 0.0
        self.problems: list[str] = []

    def copy(self, name: str) -> Path:
        folder = self.models_dir / "incoming" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in (*self.sound.manifest["files"], MANIFEST_FILE):
            shutil.copyfile(self.sound.folder / file, folder / file)
        return folder

    def refused(self, what: str, body: dict[str, str]) -> bool:
        """Ask the server to serve it; True when it says no, in time, with a reason."""
        began = time.monotonic()
        answer = self.server.post("/admin/reload", body)
        took_s = time.monotonic() - began
        self.slowest_s = max(self.slowest_s, took_s)
        error = answer.json().get("error", {})
        if answer.status_code == 409 and error.get("message") and took_s <= SLOWEST_S:
            return True
        self.problems.append(f"{what}: {answer.status_code} after {took_s:.1f} s: {answer.text[:200]}")
        return False

    def damaged(self, count: int, dice: random.Random) -> int:
        announced = sha256_file(self.sound.manifest_file)
        found = 0
        for _ in range(count):
            what = damage(self.copy(self.sound.id), dice)
            found += self.refused(what, {"id": self.sound.id, "manifest_sha256": announced})
            # a foreign file is a verdict on these bytes; the next damage is tried afresh
            (self.models_dir / "bad" / f"{self.sound.id}.json").unlink(missing_ok=True)
        return found

    def changed(self, changes: dict[str, Change]) -> int:
        found = 0
        for what, change in changes.items():
            folder = self.copy("candidate")
            change(folder)
            body = announce(folder)
            found += self.refused(what, body) and self.refused(f"{what}, again", body)
        return found


def prove(folder: Path, damaged: int, seed: int) -> dict[str, Any]:
    """Publish everything. Returns the counts."""
    workspace, (serving, sound) = ready_root(folder / "root", (0, 10))
    adapter = commit_adapter(workspace, 20, sound, serving)
    canary = folder / "canary"
    with running(workspace) as server:
        server.post("/admin/reload", place(serving, workspace.root / "served")).raise_for_status()
        asker, trial = Asker(server), Trial(server, sound)
        asker.start()
        try:
            broken = trial.damaged(damaged, random.Random(seed))  # noqa: S311 - damage, not secrets
            bad = BAD | {"an adapter on a base nobody has": lambda into: wrong_base(adapter, into)}
            unfit = trial.changed(bad)
            evil = malicious(canary)
            hostile = trial.changed(evil)
        finally:
            asker.stop.set()
            asker.join()
    return {
        "damaged": f"{broken} of {damaged} refused",
        "bad": f"{unfit} of {len(bad)} refused",
        "malicious": f"{hostile} of {len(evil)} refused",
        "code_run": int(canary.exists()),
        "slowest_refusal_s": round(trial.slowest_s, 2),
        "requests_meanwhile": asker.requests,
        "answered_by_others": sorted(asker.answered_by - {serving.id}),
        "failed_requests": asker.failures[:5],
        "problems": trial.problems[:20],
    }


def main() -> int:
    """Run it. Returns 0, or 5."""
    parser = argparse.ArgumentParser(description="Damaged, bad and malicious checkpoints.")
    parser.add_argument("--damaged", type=int, default=430)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        doc = prove(Path(folder), options.damaged, options.seed)
    print(json.dumps(doc, indent=1))
    wrong = doc["problems"] or doc["code_run"] or doc["answered_by_others"] or doc["failed_requests"]
    return 5 if wrong or not doc["requests_meanwhile"] else 0


if __name__ == "__main__":
    sys.exit(main())
