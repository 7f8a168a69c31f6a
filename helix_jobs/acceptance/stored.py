"""The acceptance rule of a stored request, and the schema that the request itself states."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from helix_jobs.acceptance.rule import AcceptanceRule

if TYPE_CHECKING:
    from collections.abc import Mapping


def stored_rule(request: Mapping[str, Any]) -> AcceptanceRule | None:
    """The rule of ``jobs.request``; None without one.

    Raises:
        InvalidFieldError: Someone changed it, and it is malformed.
    """
    values = request.get("accept")
    return None if values is None else AcceptanceRule.from_mapping(values)


def own_schema(request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON Schema that the request's ``constraint`` holds the answer to; None without one."""
    constraint = request.get("constraint")
    if not isinstance(constraint, dict):
        return None
    if constraint.get("kind") == "json_object":
        return {"type": "object"}
    if constraint.get("kind") != "json_schema":
        return None
    try:
        schema = json.loads(constraint.get("value", ""))
    except (TypeError, ValueError):
        return None
    return schema if isinstance(schema, dict) else None
