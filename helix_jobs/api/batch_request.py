"""The body of ``POST /v1/batches``: checked, and turned into a batch to store. Pure."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.api.expiry import expiry_seconds
from helix_jobs.api.idempotency import stored_key
from helix_jobs.api.problems import Problem
from helix_jobs.intake.forms import ENDPOINTS
from helix_jobs.intake.line_faults import kind, refuse_others
from helix_jobs.intake.strict_json import refuse_unstorable
from helix_jobs.storage.api_records import NewApiBatch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_FIELDS: Final = frozenset({"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"})
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,3})([hd])", re.ASCII)
# Of a batch that was submitted on the page: its lines may be of every form, and each for its own endpoint.
ANY_ENDPOINT: Final = "any"
_UNITS: Final = {"h": "hours", "d": "days"}
_MAX_PAIRS: Final = 16
_MAX_KEY_CHARS: Final = 64
_MAX_VALUE_CHARS: Final = 512
_MAX_ID_CHARS: Final = 40


def read_batch_request(body: Mapping[str, Any], owner: str, idempotency_key: str | None, now: datetime) -> NewApiBatch:
    """Check a body and make a batch of it.

    Args:
        body: The parsed JSON.
        owner: Who asks.
        idempotency_key: The client's name for the request.
        now: The time.

    Raises:
        Problem: A field is wrong; names the field, the reason and the remedy.
        InvalidFieldError: A field is unknown, or its text cannot be stored.
    """
    refuse_others(body, _FIELDS)
    window = _text(body, "completion_window", "give a number of hours or days, such as 24h or 7d")
    found = _WINDOW.fullmatch(window)
    if found is None:
        raise _refused("completion_window", "is unknown", "give a number of hours or days, such as 24h or 7d")
    endpoint = _text(body, "endpoint", f"give {' or '.join(ENDPOINTS)}")
    if endpoint not in ENDPOINTS:
        raise _refused("endpoint", "is not one that is served", f"give {' or '.join(ENDPOINTS)}")
    return NewApiBatch(
        id=f"batch_{secrets.token_hex(12)}",
        owner=owner,
        input_file_id=_text(body, "input_file_id", "give the id of an uploaded file")[:_MAX_ID_CHARS],
        endpoint=endpoint,
        completion_window=window,
        metadata=_metadata(body.get("metadata")),
        output_expires_after=expiry_seconds(body.get("output_expires_after"), "output_expires_after"),
        idempotency_key=stored_key("batch", owner, idempotency_key),
        created_at=now,
        expires_at=now + timedelta(**{_UNITS[found[2]]: int(found[1])}),
    )


def _text(body: Mapping[str, Any], name: str, remedy: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise _refused(name, "is missing" if value is None else f"is {kind(value)}", remedy)
    refuse_unstorable(value)
    return value


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    remedy = (
        f"give at most {_MAX_PAIRS} pairs of texts, names of {_MAX_KEY_CHARS} characters at most and values of "
        f"{_MAX_VALUE_CHARS}"
    )
    if not isinstance(value, dict):
        raise _refused("metadata", f"is {kind(value)}", remedy)
    if len(value) > _MAX_PAIRS:
        raise _refused("metadata", f"has {len(value)} pairs", remedy)
    for name, text in value.items():
        if len(name) > _MAX_KEY_CHARS or not isinstance(text, str) or len(text) > _MAX_VALUE_CHARS:
            raise _refused("metadata", "has a pair that is no text, or is too long", remedy)
    refuse_unstorable(value)
    return value


def _refused(field: str, reason: str, remedy: str) -> Problem:
    return Problem(400, f"{field}: {reason}; {remedy}", param=field, code="invalid_request")
