"""What the publisher says with POST /admin/reload (arrow: publisher -> inference server; torch-free)."""

from dataclasses import dataclass
from functools import cache
from typing import Any  # a body is JSON of any shape until it is checked here

import jsonschema_rs

from inference.generation import Canary
from inference.model_store import CHECKPOINT_ID, SHA256
from inference.protocol import RequestError

MAX_CANARIES = 16
_HASH = {"type": "string", "pattern": f"^{SHA256.pattern}$"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": f"^{CHECKPOINT_ID.pattern}$"},
        "manifest_sha256": _HASH,
        "base_manifest_sha256": _HASH,
        "canaries": {
            "type": "array",
            "maxItems": MAX_CANARIES,
            "items": {
                "type": "object",
                "properties": {
                    "row": {
                        "type": "object",
                        "properties": {
                            "text": {"type": "string"},
                            "messages": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "object",
                                    "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
                                    "required": ["role", "content"],
                                },
                            },
                        },
                        "additionalProperties": False,
                        "minProperties": 1,
                        "maxProperties": 1,
                    },
                    "loss": {"type": "number"},
                    "tokens": {"type": "integer", "minimum": 1},
                },
                "required": ["row", "loss"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["id", "manifest_sha256"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class ReloadRequest:
    """A checked body. `canaries`: rows the judge scored with this checkpoint."""

    id: str
    manifest_sha256: str
    base_manifest_sha256: str | None
    canaries: tuple[Canary, ...]


@cache
def _validator() -> "Any":  # jsonschema_rs gives its validators no public type
    return jsonschema_rs.validator_for(SCHEMA)


def reload_request(body: object) -> ReloadRequest:
    """Check a body. Raises RequestError naming the field."""
    problem = next(_validator().iter_errors(body), None)
    if problem is not None or not isinstance(body, dict):
        path = ".".join(str(part) for part in problem.instance_path) if problem is not None else ""
        raise RequestError(
            f"{path or 'the body'}: {problem.message[:200] if problem is not None else 'no object'}", param=path or None
        )
    canaries = tuple(Canary(item["row"], float(item["loss"]), item.get("tokens")) for item in body.get("canaries", ()))
    return ReloadRequest(body["id"], body["manifest_sha256"], body.get("base_manifest_sha256"), canaries)
