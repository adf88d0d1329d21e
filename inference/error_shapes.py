"""Errors in the shape that clients of the imitated API parse (inside the inference server; torch-free).

{"error": {"message", "type", "param", "code"}}: 4xx for the caller's mistake with `x-should-retry: false`, 503 with
Retry-After on overload. What the server did wrong is logged, and only its kind is told.
"""

import logging
from typing import Any  # JSON documents

from flask import Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from core.errors import DropforgeError, UsageError
from core.paths import display_name
from inference.protocol import RequestError

logger = logging.getLogger(__name__)

RETRY_AFTER_S = "2"
_PATH_SHOWN = 100  # characters of a stranger's path or method that an answer repeats


def _body(message: str, kind: str, param: str | None, code: str) -> dict[str, object]:
    return {"message": message, "type": kind, "param": param, "code": code}


def error_response(status: int, message: str, kind: str, code: str, param: str | None = None) -> Response:
    """An error in the shape clients of the imitated API parse."""
    response = jsonify({"error": _body(message, kind, param, code)})
    response.status_code = status
    if status in (429, 503):
        response.headers["Retry-After"] = RETRY_AFTER_S
    elif status < 500:
        response.headers["x-should-retry"] = "false"
    return response


def known_error(error: DropforgeError) -> Response:
    status = error.http_status
    if status >= 500 and status != 503:
        logger.error("request %s: %s", g.get("request_id"), error)
    body = error_of(error)
    return error_response(status, str(body["message"]), str(body["type"]), error.slug, body["param"])


def error_of(error: DropforgeError) -> dict[str, Any]:
    status = error.http_status
    kind = "invalid_request_error" if status < 500 else "overloaded_error" if status == 503 else "server_error"
    param = error.param if isinstance(error, RequestError) else None
    text = error.message if isinstance(error, UsageError) or not error.fix else f"{error.message} (fix: {error.fix})"
    return _body(text, kind, param, error.slug)


def http_error(error: HTTPException) -> Response:
    status = error.code or 500
    valid = getattr(error, "valid_methods", None)
    allowed = ", ".join(sorted(valid)) if isinstance(valid, (list, tuple, set)) else None
    path = display_name(request.path[:_PATH_SHOWN])
    if status == 404:
        message = f"there is no {path}: GET /openapi.json lists what there is"
    elif allowed is not None:
        message = f"{path} does not take {request.method[:_PATH_SHOWN]}: use {allowed}"
    else:
        message = error.description or error.name
    response = error_response(status, message, "invalid_request_error", error.name.lower().replace(" ", "_"))
    if allowed is not None:
        response.headers["Allow"] = allowed
    return response


def unknown_error(error: Exception) -> Response:
    logger.error("request %s failed", g.get("request_id"), exc_info=error)
    return error_response(500, "the server failed; its log has the details", "server_error", "internal")
