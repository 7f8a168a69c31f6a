"""Expiry: OpenAI's expiration policy, of a file and of a batch's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.api.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

_ANCHOR: Final = "created_at"
_LEAST_SECONDS: Final = 3600
_MOST_SECONDS: Final = 2_592_000


def expiry_seconds(policy: object, field: str) -> int | None:
    """The seconds of ``{"anchor": "created_at", "seconds": 3600}``; None where nothing is given.

    Args:
        policy: The value.
        field: Its name, for the refusal.

    Raises:
        Problem: The policy is none of OpenAI's.
    """
    if policy is None:
        return None
    if not isinstance(policy, dict) or policy.keys() != {"anchor", "seconds"}:
        raise _refused(field, "is no expiration policy", 'give {"anchor": "created_at", "seconds": 3600}')
    return _checked(policy, field)


def form_expiry_seconds(fields: Mapping[str, str], field: str) -> int | None:
    """The same from the fields of a form, ``expires_after[anchor]`` and ``expires_after[seconds]``.

    Raises:
        Problem: The policy is none of OpenAI's.
    """
    found = {part: fields[name] for part in ("anchor", "seconds") if (name := f"{field}[{part}]") in fields}
    if not found:
        return None
    seconds = found.get("seconds", "")
    short = seconds.isascii() and seconds.isdecimal() and len(seconds) < len(str(_MOST_SECONDS)) * 2
    return _checked({"anchor": found.get("anchor"), "seconds": int(seconds) if short else None}, field)


def _checked(policy: Mapping[str, object], field: str) -> int:
    if policy["anchor"] != _ANCHOR:
        raise _refused(f"{field}.anchor", "is unknown", "give created_at")
    seconds = policy["seconds"]
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        raise _refused(
            f"{field}.seconds", "is out of range", f"give a whole number from {_LEAST_SECONDS} to {_MOST_SECONDS}"
        )
    return seconds


def _refused(field: str, reason: str, remedy: str) -> Problem:
    return Problem(400, f"{field}: {reason}; {remedy}", param=field, code="invalid_request")
