"""The header ``Idempotency-Key``: the same request under the same key is carried out once."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from helix_jobs.api.problems import Problem

_MAX_KEY_CHARS: Final = 200


def stored_key(kind: str, owner: str, key: str | None, *, number: int = 0) -> str | None:
    """The key under which a request is stored: two owners may use the same one.

    Args:
        kind: What the key names, such as ``batch``.
        owner: Who asks.
        key: The header's value; None without one.
        number: Which part of the request it is, where each part is stored on its own. The first part has the key
            itself, so that a request of one part and another of several are told apart under the same key.

    Raises:
        Problem: The key cannot be stored.
    """
    if key is None:
        return None
    if not key or len(key) > _MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise Problem(
            400,
            f"Idempotency-Key is not 1 to {_MAX_KEY_CHARS} printable ASCII characters; give another",
            param="Idempotency-Key",
            code="invalid_request",
        )
    if number:
        # No header's value has a line break.
        return f"{kind}:{owner}:{sha256(key.encode()).hexdigest()}\n{number}"
    return f"{kind}:{owner}:{key}"
