"""The short forms of the server's reliability runners: what `make prove` counts at length, counted briefly."""

from pathlib import Path

import pytest

from scripts.reliability import serve_bad_checkpoints, serve_connections, serve_schemathesis

pytestmark = pytest.mark.slow


def test_no_damaged_bad_or_malicious_checkpoint_answers_anybody_or_runs_code(tmp_path: Path) -> None:
    found = serve_bad_checkpoints.prove(tmp_path, damaged=25, seed=3)
    assert found["problems"] == found["answered_by_others"] == found["failed_requests"] == []
    assert (found["damaged"], found["bad"], found["malicious"]) == (
        "25 of 25 refused",
        "10 of 10 refused",
        "12 of 12 refused",
    )
    assert found["code_run"] == 0
    assert found["requests_meanwhile"] > 0


def test_nothing_that_schemathesis_makes_up_is_a_server_error_or_breaks_the_documented_shapes(tmp_path: Path) -> None:
    counted, complaints = serve_schemathesis.run(tmp_path, requests=80, seed=5, phases="fuzzing")
    assert complaints == []
    assert counted.total() >= 80
    assert not [status for status in counted if status.startswith("5")]


def test_health_answers_beside_streams_and_bad_connections(tmp_path: Path) -> None:
    found = serve_connections.run(tmp_path, seconds=2)
    assert found["failed"] == 0
    assert found["callers"]["streams answered"] > 0
