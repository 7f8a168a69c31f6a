"""Labels of a batch: its name, metadata and idempotency key, checked before they are stored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from helix_jobs.errors import InputError, InvalidFieldError
from helix_jobs.intake.strict_json import refuse_unstorable

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEY_CHARS: Final = 255


def storable_text(what: str, text: str) -> str:
    """Return the text if both databases can store it.

    Raises:
        InputError: The text holds NUL or half a surrogate pair.
    """
    try:
        refuse_unstorable(text)
    except InvalidFieldError as error:
        raise InputError(f"the {what} {error.reason}; {error.remedy}") from error
    return text


def storable_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy of the metadata that both databases can store.

    Raises:
        InputError: The metadata is not a JSON object, or holds NUL or half a surrogate pair.
    """
    try:
        copy = json.loads(json.dumps({} if metadata is None else dict(metadata), allow_nan=False))
        refuse_unstorable(copy)
    except InvalidFieldError as error:
        raise InputError(f"the batch's metadata {error.reason} in {error.field}; {error.remedy}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the batch's metadata cannot be stored as JSON ({error}); use plain JSON types") from error
    return cast("dict[str, Any]", copy)


def checked_key(key: str | None) -> str | None:
    """Return the idempotency key, if there is one.

    Raises:
        InputError: The key is empty, too long, or cannot be stored.
    """
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InputError(f"the idempotency key has {len(key)} characters; give 1 to {MAX_KEY_CHARS}")
    return storable_text("idempotency key", key)
