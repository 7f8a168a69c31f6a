"""Which of an engine's adapters answers a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Collection

    from helix_jobs.engine.request import Request

# Names that a message lists.
_SHOWN: Final = 20


def chosen_adapter(request: Request, names: Collection[str]) -> str | None:
    """The adapter that a request asks for, or None for the model itself.

    ``adapter`` has to be one of the names. ``model`` chooses an adapter only if it is the name of one: most lines name
    a model that somebody else serves.

    Raises:
        InvalidFieldError: There is no such adapter.
    """
    if request.adapter is None:
        return request.model if request.model in names else None
    if request.adapter in names:
        return request.adapter
    raise InvalidFieldError("adapter", f"{request.adapter!r:.60} is not loaded", _remedy(names))


def _remedy(names: Collection[str]) -> str:
    if not names:
        return "start the worker with --adapter NAME=DIRECTORY, or remove the field"
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} others" if len(listed) > _SHOWN else ""
    return f"give one of {', '.join(listed[:_SHOWN])}{more}, or remove the field"
