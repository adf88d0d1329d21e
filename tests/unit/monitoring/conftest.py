"""A realistic root and the monitor's application over it, without a network."""

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from core.gpu import FakeGpuProbe, Gpu, GpuReading
from core.paths import Workspace
from core.settings import load_settings
from monitoring.api.aggregator import build_aggregator
from monitoring.api.events import Streams
from monitoring.app import create_app
from monitoring.guard import Guard
from sample_root import SampleRoot, working_day


@pytest.fixture
def sample(workspace: Workspace) -> SampleRoot:
    return working_day(workspace)


@pytest.fixture
def probe() -> FakeGpuProbe:
    return FakeGpuProbe(GpuReading((Gpu("GPU-aa", "Fake 9000", "lost", "GPU is lost"),), "555.42"))


@pytest.fixture
def streams(workspace: Workspace) -> Streams:
    return Streams(workspace, "main", most=2)


@pytest.fixture
def client(workspace: Workspace, probe: FakeGpuProbe, streams: Streams) -> Iterator[FlaskClient]:
    """Asks the monitor over whatever stands in `workspace`."""
    settings = load_settings(workspace)
    app = create_app(build_aggregator(workspace, settings, probe), streams, Guard({"localhost"}))
    with app.test_client() as client:
        yield client
