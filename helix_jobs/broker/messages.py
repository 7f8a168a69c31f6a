"""Which messages are Helix's own. A pure check: anyone who can write to Redis may have put others there."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.broker.publisher import TASK_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

# Helix's bodies are a tenth of this; nothing longer is decoded.
MAX_BODY_CHARS: Final = 512
MAX_NAME_CHARS: Final = 64
MAX_JOB_ID: Final = 2**63 - 1

# The headers the publisher writes, and the mark kombu adds to a message that is given back. Any other header (an
# expiry, a later start, callbacks, a time limit) would make Celery do things that no job asks for.
_HEADERS: Final = frozenset({"lang", "task", "id", "root_id", "ignore_result", "redelivered"})


def is_envelope(raw: object) -> bool:
    """Whether this is a message to any queue: it has the parts that kombu reads unchecked."""
    if not isinstance(raw, dict) or not isinstance(raw.get("headers"), dict):
        return False
    properties = raw.get("properties")
    if not isinstance(properties, dict) or not is_name(properties.get("delivery_tag")):
        return False
    delivery = properties.get("delivery_info")
    return (
        isinstance(delivery, dict)
        and all(isinstance(delivery.get(name), str) for name in ("exchange", "routing_key"))
        and isinstance(raw.get("body"), str)
        and properties.get("body_encoding") in (None, "base64")
        and all(isinstance(raw.get(name), str) for name in ("content-type", "content-encoding"))
    )


def job_id_of_message(raw: Any, queue: str) -> int | None:  # noqa: ANN401  (parsed JSON)
    """The id of the job a message names, or None for a foreign one: malformed, too long, of another task.

    Args:
        raw: The message.
        queue: The queue it came from.
    """
    if not is_envelope(raw) or not _is_for_us(raw["headers"], raw["properties"], queue):
        return None
    written = (raw["content-type"], raw["content-encoding"], raw["properties"].get("body_encoding"))
    if written != ("application/json", "utf-8", "base64") or len(raw["body"]) > MAX_BODY_CHARS:
        return None
    try:
        body = json.loads(base64.b64decode(raw["body"], validate=True))
    except (ValueError, RecursionError):
        return None
    return job_id_of(body[0]) if isinstance(body, list) and body[1:] == [{}, {}] else None


def job_id_of(arguments: object) -> int | None:
    """The job's id in a task's arguments, which anyone may have written."""
    if isinstance(arguments, list | tuple) and len(arguments) == 1:
        job_id = arguments[0]
        if isinstance(job_id, int) and not isinstance(job_id, bool) and 0 < job_id <= MAX_JOB_ID:
            return job_id
    return None


def is_name(value: object) -> bool:
    """Whether this is a short text that is not empty."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS


def _is_for_us(headers: Mapping[str, object], properties: Mapping[str, Any], queue: str) -> bool:
    delivery, priority = properties["delivery_info"], properties.get("priority")
    return (
        headers.get("task") == TASK_NAME
        and is_name(headers.get("id"))
        and headers.keys() <= _HEADERS
        and (delivery["exchange"], delivery["routing_key"]) == ("", queue)
        and isinstance(priority, int)
        and not isinstance(priority, bool)
    )
