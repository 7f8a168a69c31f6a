"""OpenRequests: how many requests wait at once, in all and for each key."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from helix_jobs.api.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_RETRY_SECONDS: Final = 1


class OpenRequests:
    """Counts them. Used by the event loop's thread alone.

    Args:
        limit: The most in all; a key may have half of them, so that it cannot shut out the others.
        is_shared: Whether several keys share the server.
    """

    def __init__(self, limit: int, *, is_shared: bool) -> None:
        self._limit = limit
        self._own_limit = max(1, limit // 2) if is_shared else limit
        self._of: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """How many are open."""
        return self._of.total()

    @contextmanager
    def one(self, owner: str) -> Iterator[None]:
        """Count a request while it is open.

        Raises:
            Problem: Too many are open.
        """
        if self.total >= self._limit or self._of[owner] >= self._own_limit:
            raise Problem(
                429,
                f"{self.total} requests are open, and this is all that the server or the key may have; try again, or "
                "send a batch",
                code="too_many_requests",
                retry_after=_RETRY_SECONDS,
            )
        self._of[owner] += 1
        try:
            yield
        finally:
            self._of[owner] -= 1
            if not self._of[owner]:
                del self._of[owner]
