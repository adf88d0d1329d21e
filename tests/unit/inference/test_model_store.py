"""What arrives in incoming/ is believed only as far as the announced manifest; links and marks survive anything."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.atomic import sha256_file
from core.checkpoints import Catalogue
from core.errors import GateFailedError
from core.paths import Workspace
from inference.inspection import DamagedTransferError, RefusedCheckpointError
from inference.model_store import ModelStore

FIELDS = {
    "tokenizer_sha256": "0" * 64,
    "chat_template_sha256": None,
    "profile": None,
    "config_sha256": "0" * 64,
    "versions": {},
    "jobs": [],
    "train_loss": None,
}
FILES = {
    "model.safetensors": b"\x08\0\0\0\0\0\0\0{}      " + bytes(range(200)),
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"x",
}


class Sent:
    """A checkpoint as it lies in incoming/."""

    def __init__(self, root: Path, changes: dict[str, bytes] | None = None) -> None:
        ws = Workspace(root)
        catalogue = Catalogue(ws, "main")
        staged = catalogue.stage(0)
        for name, data in {**FILES, **(changes or {})}.items():
            (staged / name).write_bytes(data)
        (staged / "optimizer.safetensors").write_bytes(b"stays at home")
        base = {"name": "b", "sha256": None}
        checkpoint = catalogue.commit(staged, {**FIELDS, "step": 0, "parent": None, "base": base})
        self.id = checkpoint.id
        self.store = ModelStore(root / "served")
        self.store.make_folders()
        self.folder = self.store.incoming(self.id)
        self.folder.mkdir()
        for name in (*checkpoint.manifest["files"], "MANIFEST.json"):
            shutil.copyfile(checkpoint.folder / name, self.folder / name)
        self.manifest_sha256 = sha256_file(self.folder / "MANIFEST.json")

    def take_in(self) -> Any:
        return self.store.take_in(self.id, self.manifest_sha256)

    def rewrite_manifest(self, change: Callable[[dict[str, Any]], None]) -> None:
        """An attacker who can also announce the new sum."""
        path = self.folder / "MANIFEST.json"
        doc = json.loads(path.read_text())
        change(doc)
        path.write_text(json.dumps(doc))
        self.manifest_sha256 = sha256_file(path)


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    return Sent(tmp_path)


def test_a_whole_checkpoint_moves_to_its_id(sent: Sent) -> None:
    stored = sent.take_in()
    assert stored.folder == sent.store.folder / sent.id
    assert sorted(p.name for p in stored.folder.iterdir()) == sorted([*FILES, "MANIFEST.json"])
    assert not sent.folder.exists()
    assert sent.take_in().id == sent.id  # again, from where it is stored


def test_every_single_bit_flip_and_truncation_is_noticed(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    originals = {p.name: p.read_bytes() for p in sent.folder.iterdir()}
    random = np.random.default_rng(1)
    tried = 0
    for name, data in originals.items():
        for _ in range(30):
            flipped = bytearray(data)
            flipped[random.integers(len(data))] ^= 1 << int(random.integers(8))
            for broken in (bytes(flipped), data[: random.integers(len(data))]):
                for other, whole in originals.items():
                    sent.folder.mkdir(exist_ok=True)
                    (sent.folder / other).write_bytes(broken if other == name else whole)
                with pytest.raises(GateFailedError):
                    sent.take_in()
                assert not (sent.store.folder / sent.id).exists()
                tried += 1
    assert tried == 360


def test_a_damaged_transfer_is_removed_so_that_the_next_one_begins_clean(sent: Sent) -> None:
    (sent.folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(DamagedTransferError, match=r"model\.safetensors"):
        sent.take_in()
    assert not sent.folder.exists()
    with pytest.raises(DamagedTransferError, match="nothing was sent"):
        sent.take_in()


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "pytorch_model.bin", "modeling_x.py", "training_args.bin", "x.pkl", "README.md", ".hidden"]
)
def test_files_that_must_not_travel_are_refused_by_name(sent: Sent, name: str) -> None:
    (sent.folder / name).write_bytes(b"")
    with pytest.raises(RefusedCheckpointError, match=name):
        sent.take_in()


def test_a_transfer_that_broke_off_is_no_verdict_on_the_checkpoint(sent: Sent) -> None:
    (sent.folder / ".rsync-partial").mkdir()
    (sent.folder / "model.safetensors").rename(sent.folder / ".rsync-partial" / "model.safetensors")
    with pytest.raises(DamagedTransferError, match="not finished"):
        sent.take_in()
    assert not sent.folder.exists()


def test_an_allowed_name_that_the_manifest_does_not_list_is_refused(sent: Sent) -> None:
    (sent.folder / "generation_config.json").write_bytes(b"{}")
    with pytest.raises(RefusedCheckpointError, match="does not name"):
        sent.take_in()


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_only_regular_files_are_looked_at(sent: Sent, kind: str) -> None:
    target = sent.folder / "chat_template.jinja"
    target.unlink()
    if kind == "link":
        target.symlink_to("/etc/passwd")
    elif kind == "folder":
        target.mkdir()
    else:
        os.mkfifo(target)
    with pytest.raises(RefusedCheckpointError, match="chat_template"):
        sent.take_in()


@pytest.mark.parametrize("name", ["MANIFEST.json", "whole folder"])
def test_links_in_place_of_the_manifest_or_the_folder_are_refused(sent: Sent, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if name == "MANIFEST.json":
        (sent.folder / name).rename(elsewhere)
        (sent.folder / name).symlink_to(elsewhere)
    else:
        sent.folder.rename(elsewhere)
        sent.folder.symlink_to(elsewhere)
    with pytest.raises(GateFailedError):
        sent.take_in()
    assert elsewhere.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"model_type": "x", "auto_map": {"AutoModel": "modeling.X"}}'),
        ("config.json", '{"text_config": {"auto_map": {"AutoModel": "modeling.X"}}}'),
        ("config.json", '{"_attn_implementation": "kernels-community/evil"}'),
        ("config.json", '{"_attn_implementation_internal": "evil/kernel"}'),
        ("config.json", '{"use_kernels": true}'),
        ("config.json", '{"quantization_config": {"quant_method": "x"}}'),
        ("config.json", '{"trust_remote_code": true}'),
        ("config.json", "[" * 5000),
        ("config.json", '{"a": NaN}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.T", null]}}'),
        ("generation_config.json", '{"custom_pipelines": {"a": 1}}'),
    ],
)
def test_fields_that_run_or_fetch_code_are_refused_even_with_a_right_manifest(
    tmp_path: Path, name: str, text: str
) -> None:
    sent = Sent(tmp_path, {name: text.encode()})
    with pytest.raises(RefusedCheckpointError, match=name):
        sent.take_in()


def test_a_manifest_that_lies_about_its_id_or_its_files_is_refused(sent: Sent) -> None:
    sent.rewrite_manifest(lambda m: m.update(step=1))
    with pytest.raises(RefusedCheckpointError, match="its weights give"):
        sent.take_in()


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", "model.bin"])
def test_a_manifest_cannot_name_files_elsewhere(sent: Sent, name: str) -> None:
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    sent.rewrite_manifest(lambda m: m["files"].update({name: entry}))
    with pytest.raises(GateFailedError):
        sent.take_in()


def test_a_manifest_of_another_schema_is_refused(sent: Sent) -> None:
    sent.rewrite_manifest(lambda m: m.update(schema="manifest.v2"))
    with pytest.raises(RefusedCheckpointError, match="schema"):
        sent.take_in()


def test_a_stored_copy_damaged_on_this_disk_is_replaced_by_the_whole_one_sent(sent: Sent, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sent.folder, copy)
    sent.take_in()
    (sent.store.folder / sent.id / "model.safetensors").write_bytes(b"rot")
    shutil.copytree(copy, sent.folder)
    sent.take_in()
    assert sent.store.read(sent.id).id == sent.id


def test_links_flip_and_the_one_before_becomes_previous(sent: Sent) -> None:
    store = sent.store
    assert (store.current(), store.previous()) == (None, None)
    for name in ("1-aaaaaaaaaaaa", "2-bbbbbbbbbbbb", "2-bbbbbbbbbbbb"):
        store.flip(name)
    assert (store.current(), store.previous()) == ("2-bbbbbbbbbbbb", "1-aaaaaaaaaaaa")
    store.flip("1-aaaaaaaaaaaa")
    assert (store.current(), store.previous()) == ("1-aaaaaaaaaaaa", "2-bbbbbbbbbbbb")
    assert os.readlink(store.folder / "current") == "1-aaaaaaaaaaaa"


def test_links_that_point_elsewhere_are_no_ids(sent: Sent) -> None:
    for target in ("../../etc", "/etc", "x"):
        (sent.store.folder / "current").unlink(missing_ok=True)
        (sent.store.folder / "current").symlink_to(target)
        assert sent.store.current() is None


def test_bad_marks_hold_for_the_same_bytes_only_and_survive_damage(sent: Sent) -> None:
    sent.store.mark_bad(sent.id, "a" * 64, "garbage")
    assert not sent.folder.exists()
    assert sent.store.bad_reason(sent.id, "a" * 64) == "garbage"
    assert sent.store.bad_reason(sent.id, "b" * 64) is None
    (sent.store.folder / "bad" / f"{sent.id}.json").write_text("{")
    assert sent.store.bad_reason(sent.id, "a" * 64) is None


def test_room_is_made_oldest_first_and_never_from_what_is_needed(sent: Sent) -> None:
    sent.take_in()
    whole = sent.store.folder / sent.id
    names = [f"{step}-{step:012x}" for step in range(1, 9)]
    for name in names:
        shutil.copytree(whole, sent.store.folder / name)
    sent.store.flip(names[0])
    sent.store.flip(names[7])
    (sent.store.folder / ".trash-old").mkdir()
    deleted = sent.store.make_room(4, {names[1]})
    assert sorted(sent.store.stored_ids()) == sorted([names[0], names[1], names[6], names[7]])
    assert len(deleted) == 5
    assert not (sent.store.folder / ".trash-old").exists()


def send_base(sent: Sent, base_sha256: str) -> None:
    shutil.copytree(sent.folder, sent.store.incoming(f"base-{base_sha256}"))


def test_a_base_is_kept_under_its_sum_and_found_again(sent: Sent) -> None:
    base_sha256 = json.loads((sent.folder / "MANIFEST.json").read_text())["base"]["sha256"]
    with pytest.raises(DamagedTransferError, match="is not here"):
        sent.store.take_in_base(base_sha256, sent.manifest_sha256)
    send_base(sent, base_sha256)
    stored = sent.store.take_in_base(base_sha256, sent.manifest_sha256)
    assert stored.folder == sent.store.folder / "base" / base_sha256
    assert sent.store.take_in_base(base_sha256, None).weights_sha256 == base_sha256
    (stored.folder / "model.safetensors").write_bytes(b"rot")
    with pytest.raises(DamagedTransferError):
        sent.store.read_base(base_sha256)


def test_another_base_than_the_adapters_is_refused(sent: Sent) -> None:
    send_base(sent, "f" * 64)
    with pytest.raises(RefusedCheckpointError, match="not the base of this adapter"):
        sent.store.take_in_base("f" * 64, sent.manifest_sha256)


@pytest.mark.parametrize("names", [("adapter_config.json",), ("adapter_config.json", "adapter_model.safetensors")])
def test_half_an_adapter_or_one_inside_a_whole_model_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    sent = Sent(tmp_path, dict.fromkeys(names, b'{"base_model_name_or_path": "/etc"}'))
    with pytest.raises(RefusedCheckpointError, match="adapter"):
        sent.take_in()
