"""A 4-bit base: what is asked of transformers, and how it is refused where it would not work."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.errors import ConfigError, MissingToolError
from scripts.reliability.training_farm import TrainingFarm
from trainer.models.quantized import PACKAGE, four_bits

MakeFarm = Callable[..., TrainingFarm]


@pytest.fixture
def bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that looks installed: its real import needs no place in a test of what is asked of it."""
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").touch()
    about = tmp_path / f"{PACKAGE}-0.50.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.50.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("bitsandbytes")
def test_a_lora_run_on_a_gpu_asks_for_nf4_with_the_compute_format_of_the_dials() -> None:
    asked = four_bits("nf4", method="lora", device="cuda", compute_dtype=torch.bfloat16)
    assert asked is not None
    wanted = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    assert wanted.items() <= asked.to_dict().items()
    assert asked.bnb_4bit_compute_dtype is torch.bfloat16


def test_without_the_setting_nothing_is_asked_for() -> None:
    assert four_bits(None, method="full", device="cpu", compute_dtype=torch.float32) is None


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingToolError, match=r"bitsandbytes.*fix: pip install 'dropforge\[quantize\]'"):
        four_bits("nf4", method="lora", device="cuda", compute_dtype=torch.float32)


def test_a_run_that_trains_all_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"only an adapter.*trainer\.method to lora"):
        four_bits("nf4", method="full", device="cuda", compute_dtype=torch.float32)


def test_a_trainer_without_a_gpu_refuses_in_one_line_before_it_loads_the_model(
    make_farm: MakeFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make_farm(trainer={"method": "lora", "quantize": "nf4"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    loaded: list[object] = []
    monkeypatch.setattr("trainer.models.load.load_trunk", lambda *known: loaded.append(known))
    with pytest.raises(ConfigError, match=r"4-bit weights are for GPUs.*set trainer\.quantize to null.*pip install"):
        farm.worker()
    assert not loaded


def test_another_quantization_needs_a_restart(make_farm: MakeFarm) -> None:
    farm = make_farm()
    worker = farm.worker()
    changed = make_farm("other", trainer={"quantize": "nf4"}).settings
    with pytest.raises(ConfigError, match=r"trainer\.quantize is 'nf4'.*restart"):
        worker.run.adopt(changed)
    assert worker.run.settings.trainer.quantize is None
