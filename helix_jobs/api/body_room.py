"""BodyRoom: how many bytes of half-sent bodies a server holds at once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from helix_jobs.api.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

# Trade-off: more lets more large bodies come in side by side; less keeps the server smaller under clients that mean
# harm. Fifty of the largest requests fit, or some 250 uploads.
ROOM_BYTES: Final = 256 * 1024 * 1024
# Of each body, and not counted: small requests are answered however full the room is.
FREE_BYTES: Final = 64 * 1024
_RETRY_SECONDS: Final = 5


class BodyRoom:
    """Counts what is held of bodies while they come in. Used by the event loop's thread alone."""

    def __init__(self) -> None:
        self.held = 0

    @contextmanager
    def place(self) -> Iterator[BodyPlace]:
        """A place for one body; what it holds is given back at the end."""
        place = BodyPlace(self)
        try:
            yield place
        finally:
            place.hold(0)


class BodyPlace:
    """What one body holds of the room."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._counted = 0

    def hold(self, count: int) -> None:
        """So many bytes of the body are in memory now.

        Raises:
            Problem: The room is full, and this body wants more of it.
        """
        counted = max(0, count - FREE_BYTES)
        more = counted - self._counted
        if more > 0 and self._room.held + more > ROOM_BYTES:
            raise Problem(
                429,
                "the bodies of other requests fill the memory that the server has for them; try again",
                code="too_many_requests",
                retry_after=_RETRY_SECONDS,
            )
        self._room.held += more
        self._counted = counted
