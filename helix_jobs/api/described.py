"""What the OpenAPI description says of bodies and refusals that our own code checks."""

from __future__ import annotations

from typing import Any, Final

from helix_jobs.intake.forms import CHAT_ENDPOINT, COMPLETION_ENDPOINT, ENDPOINTS

_WORDS: Final = {
    400: "The request is wrong: the message names the field, the reason and the remedy.",
    401: "The API key is missing or wrong.",
    403: "The request may not be asked from there.",
    404: "There is no such thing.",
    408: "The body stopped in the middle.",
    409: "The request does not fit the state of things, or its idempotency key names another request.",
    410: "The request was removed, or started again, before its answer was read.",
    413: "The request is too large.",
    415: "The body is not of the right type.",
    422: "No answer was accepted.",
    429: "Too many requests are open, or came within a minute.",
    500: "The server or the engine failed.",
    502: "The server that computes the answers (HELIX_ENDPOINT_URL) was lost each time it computed this one.",
    503: "No worker runs, the database does not answer, or the server stops.",
    504: "The job took too long.",
    507: "The request does not fit into memory.",
}
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": ["string", "null"]},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_TEXT: Final = {"type": "string", "pattern": r"\S"}
_TOKEN_ID: Final = {"type": "integer", "minimum": 0}
_PROMPTS: Final = {
    "type": "array",
    "minItems": 1,
    "maxItems": 128,
    "items": {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _TOKEN_ID}]},
}
_MESSAGE: Final = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"type": ["string", "array", "null"]},
    },
}
_SAMPLING: Final = {
    "model": {"type": "string", "description": "An adapter's name chooses the adapter; other names change nothing."},
    "max_tokens": {"type": "integer", "minimum": 0},
    "temperature": {"type": "number", "minimum": 0},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 128},
    "seed": {"type": "integer"},
    "stop": {"type": ["string", "array", "null"]},
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals that a route may answer with."""
    return {
        status: {"description": _WORDS[status], "content": {"application/json": {"schema": _ERROR}}}
        for status in statuses
    }


def _body(required: str, schema: dict[str, Any]) -> dict[str, Any]:
    content = {
        "type": "object",
        "required": [required],
        "properties": {required: schema, **_SAMPLING},
        "description": "Every field that a line of a batch may have.",
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": content}}}}


_EXPIRY: Final = {
    "type": "object",
    "required": ["anchor", "seconds"],
    "properties": {
        "anchor": {"const": "created_at"},
        "seconds": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}
UPLOAD_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"const": "batch"},
                        "file": {"type": "string", "format": "binary", "description": "OpenAI Batch lines."},
                        "expires_after": _EXPIRY,
                    },
                }
            }
        },
    }
}
BATCH_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input_file_id", "endpoint", "completion_window"],
                    "properties": {
                        "input_file_id": {"type": "string"},
                        "endpoint": {"enum": list(ENDPOINTS)},
                        "completion_window": {"type": "string", "description": "Hours or days: 24h, 7d."},
                        "metadata": {"type": ["object", "null"], "description": "Up to 16 pairs of texts."},
                        "output_expires_after": _EXPIRY,
                    },
                }
            }
        },
    }
}
GENERATION_BODIES: Final = {
    CHAT_ENDPOINT: _body("messages", {"type": "array", "items": _MESSAGE, "minItems": 1}),
    COMPLETION_ENDPOINT: _body(
        "prompt", {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _TOKEN_ID}, _PROMPTS]}
    ),
}
