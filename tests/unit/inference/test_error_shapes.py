"""Errors of paths and methods that there are not: the agreed shape, in words of our own, and no cause to ask again."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference.app import Service, make_app
from inference.guard import HostList, Keys
from inference.metrics import ServerMetrics


@pytest.fixture
def client() -> FlaskClient:
    nobody: Any = SimpleNamespace(serving_id=None)
    service = Service(
        nobody, nobody, nobody, ServerMetrics(), Keys(None, None), HostList(["localhost"]), 1, threading.Event()
    )
    return make_app(service).test_client()


@pytest.mark.parametrize("path", ["/v1/chat/completion", "/nowhere", "/v1/models/", "/v1//models", "/v1/\u202e"])
def test_a_path_that_is_not_there_is_told_which_are(client: FlaskClient, path: str) -> None:
    answer = client.post(path, json={})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (404, "false")
    error = answer.get_json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "not_found", None)
    assert "/openapi.json" in error["message"] and "\u202e" not in error["message"]


def test_a_wrong_method_is_told_the_right_one(client: FlaskClient) -> None:
    answer = client.get("/v1/chat/completions")
    assert (answer.status_code, answer.headers["x-should-retry"], answer.headers["Allow"]) == (405, "false", "POST")
    error = answer.get_json()["error"]
    assert error["code"] == "method_not_allowed"
    assert error["message"] == "/v1/chat/completions does not take GET: use POST"
