"""A checkpoint somebody else laid into the run: whatever it holds, a resume runs nothing of it."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.atomic import sha256_file
from core.checkpoints import MANIFEST_FILE, expected_id
from core.errors import DropforgeError
from scripts.reliability.serve_bad_checkpoints import field, malicious
from scripts.reliability.training_farm import TrainingFarm

MakeFarm = Callable[..., TrainingFarm]
WHATEVER = sorted(malicious(Path("x")))
UNDER_OUR_NAMES = ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "trained_rows.npy", "state.json"]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._path,)


def pickled(canary: Path) -> bytes:
    """An .npy whose one object is a pickle that runs code."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Touch(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def announce(folder: Path) -> None:
    """Make the manifest right again, as whoever made the folder would."""
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    for entries in (manifest["files"], manifest["training_files"]):
        for name in entries:
            file = folder / name
            entries[name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    manifest["id"] = expected_id(manifest)
    path.write_text(json.dumps(manifest))


def resume(farm: TrainingFarm) -> DropforgeError | None:
    """Start a trainer on the run. Returns what it refused with, or None."""
    try:
        farm.worker()
    except DropforgeError as error:
        return error
    return None


def test_the_canary_of_these_tests_works(tmp_path: Path) -> None:
    np.load(io.BytesIO(pickled(tmp_path / "canary")), allow_pickle=True)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("what", WHATEVER)
def test_files_and_fields_that_run_code_elsewhere_run_nothing_on_a_resume(
    make_farm: MakeFarm, tmp_path: Path, what: str
) -> None:
    farm, canary = make_farm(), tmp_path / "canary"
    farm.worker()
    folder = farm.head().folder
    malicious(canary)[what](folder)
    announce(folder)
    resume(farm)
    assert not canary.exists()


@pytest.mark.parametrize("name", UNDER_OUR_NAMES)
def test_a_pickle_under_one_of_our_own_names_is_refused_unread(make_farm: MakeFarm, tmp_path: Path, name: str) -> None:
    farm, canary = make_farm(), tmp_path / "canary"
    farm.worker()
    folder = farm.head().folder
    (folder / name).write_bytes(pickled(canary))
    announce(folder)
    refused = resume(farm)
    assert not canary.exists()
    if name != "trained_rows.npy":  # read only when a row of a job is looked up
        assert refused is not None
        assert str(folder) in str(refused)


def test_an_adapter_configuration_beside_whole_weights_leads_nowhere(make_farm: MakeFarm, tmp_path: Path) -> None:
    farm, canary, elsewhere = make_farm(), tmp_path / "canary", tmp_path / "elsewhere"
    farm.worker()
    elsewhere.mkdir()
    malicious(canary)["a pickled adapter"](elsewhere)
    malicious(canary)["auto_map with its module"](elsewhere)
    folder = farm.head().folder
    field("adapter_config.json", peft_type="LORA", base_model_name_or_path=str(elsewhere), r=1)(folder)
    malicious(canary)["a pickled adapter"](folder)
    announce(folder)
    resume(farm)
    assert not canary.exists()
