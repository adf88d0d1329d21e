"""The OpenAPI document of the inference server, made from the table of fields (inside the inference server; torch-
free).
"""

from typing import Any  # an OpenAPI document is JSON

from inference.fields import body_schema
from inference.reload_request import SCHEMA as RELOAD_SCHEMA

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_ANSWERS = {
    "400": "a field is wrong",
    "401": "no valid key",
    "403": "Host or Origin not allowed",
    "404": "unknown model or route",
    "405": "wrong method",
    "413": "the body is too large",
    "429": "too many wrong keys",
    "500": "the server failed",
    "503": "overloaded, or no model serves",
}


def _operation(
    summary: str,
    *,
    body: dict[str, Any] | None = None,
    stream: bool = False,
    admin: bool = False,
    path: str | None = None,
) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if stream:
        content["text/event-stream"] = {"schema": {}}  # events; what they hold has no place in OpenAPI 3.1
    answers: dict[str, Any] = {"200": {"description": "the answer", "content": content}}
    for code, text in {**_ANSWERS, **({"409": "refused, with the reason"} if admin else {})}.items():
        answers[code] = {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    made: dict[str, Any] = {"summary": summary, "responses": answers}
    if body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if path is not None:
        made["parameters"] = [{"name": path, "in": "path", "required": True, "schema": {"type": "string"}}]
    return made


def _plain(summary: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    made = _operation(summary)
    made["responses"]["200"]["content"] = {kind: {"schema": schema}}
    return made


def document() -> dict[str, Any]:
    """OpenAPI 3.1: every route with its body."""
    ready = _operation("a model serves and the generation thread is alive")
    ready["responses"]["503"]["content"]["application/json"]["schema"] = {"type": "object"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dropforge inference",
            "version": "1",
            "description": "Every answer names its checkpoint in X-Dropforge-Checkpoint.",
        },
        "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "security": [{"bearer": []}, {}],
        "paths": {
            "/v1/chat/completions": {"post": _operation("answer a chat", body=body_schema("chat"), stream=True)},
            "/v1/completions": {"post": _operation("continue a text", body=body_schema("completions"), stream=True)},
            "/v1/score": {"post": _operation("loss and per-token surprisal of a text", body=body_schema("score"))},
            "/v1/models": {"get": _operation("names that `model` may have")},
            "/v1/models/{name}": {"get": _operation("one of them", path="name")},
            "/v1/checkpoints": {"get": _operation("what serves, what is loaded, what was refused and why")},
            "/health": {"get": _operation("the process lives")},
            "/ready": {"get": ready},
            "/metrics": {"get": _plain("Prometheus metrics", "text/plain", {"type": "string"})},
            "/slots": {"get": _operation("streams under way, without their texts")},
            "/openapi.json": {"get": _operation("this document")},
            "/admin/reload": {
                "post": _operation(
                    "verify, load, gate and serve a published checkpoint", body=RELOAD_SCHEMA, admin=True
                )
            },
            "/admin/rollback": {"post": _operation("serve the previous checkpoint again", admin=True)},
        },
    }
