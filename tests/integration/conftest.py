"""`farm`: a running Dropforge for tests of the whole chain."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farm import Farm


@pytest.fixture
def make_farm(tmp_path: Path) -> Iterator[Callable[..., Farm]]:
    """make_farm(name="farm", **config sections) -> Farm, not yet started; everything is killed at the end."""
    farms: list[Farm] = []

    def make(name: str = "farm", **config: Any) -> Farm:
        farms.append(Farm(tmp_path / name, config))
        return farms[-1]

    yield make
    for farm in farms:
        farm.kill()
