"""What the API gives has the shapes of config/schemas: the same that the command line and other tools rely on."""

from typing import Any

import jsonschema
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.atomic import read_json
from core.paths import schema_file
from sample_root import SampleRoot


def check(document: Any, schema: str) -> None:
    jsonschema.Draft202012Validator(read_json(schema_file(schema))).validate(document)


def test_verdicts_manifests_and_status_fit_their_schemas(client: FlaskClient, sample: SampleRoot) -> None:
    def get(name: str) -> Any:
        return client.get(f"/api/{name}").get_json()

    assert len(get("jobs")["jobs"]) == 8
    for verdict in get("jobs")["jobs"]:
        check(verdict, "verdict")
    for manifest in get("checkpoints")["checkpoints"]:
        check(manifest, "manifest")
    status = get("status")
    for part, schema in (("daemon", "daemon"), ("training", "training_status"), ("deployment", "deployment")):
        check(status[part], schema)
    check(status["control"], "control")
    check(get("leaderboard"), "leaderboard")


NAMES = st.sampled_from(
    ["status", "jobs", "queue", "lineage", "checkpoints", "leaderboard", "metrics", "gpu", "journal"]
)
WORDS = st.text(max_size=40) | st.sampled_from(
    ["0", "-1", "1e9", "1", "9" * 30, "done", "20260101T000000000000Z-abcdef"]
)
KEYS = st.sampled_from(["newest", "before", "state", "q", "run", "since", "max_points", "x"]) | st.text(max_size=10)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES | WORDS, key=st.none() | WORDS, parameters=st.dictionaries(KEYS, WORDS, max_size=3))
def test_no_address_and_no_parameter_is_a_failure_of_ours(
    client: FlaskClient, sample_once: None, name: str, key: str | None, parameters: dict[str, str]
) -> None:
    path = f"/api/{name}" if key is None else f"/api/{name}/{key}"
    answer = client.get(path.replace("?", "%3F").replace("#", "%23"), query_string=parameters)
    assert answer.status_code in (200, 304, 308, 400, 404)
    if answer.status_code != 308:
        assert answer.content_type == "application/json"


@pytest.fixture
def sample_once(sample: SampleRoot) -> None:
    """The same root for every example: nothing is written by asking."""
