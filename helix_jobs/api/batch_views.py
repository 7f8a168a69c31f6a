"""BatchViews: batch objects that were read a moment ago, for clients that ask again and again how far a batch is."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable

    # A batch's owner and id.
    _Key = tuple[str, str]

# Trade-off: a longer time asks the database less often; a shorter one shows sooner what another server has changed.
FRESH_SECONDS: Final = 0.25
_MOST: Final = 1000


class BatchViews:
    """Reads each batch once in ``FRESH_SECONDS`` at most, however many ask. Used by the event loop's thread alone.

    To read a batch takes ten times the processor time of the rest of an answer, and a worker on the same machine needs
    the processors.
    """

    def __init__(self) -> None:
        # The batch in JSON, and until when it is shown. The oldest stands first.
        self._shown: dict[_Key, tuple[bytes, float]] = {}
        self._reading: dict[_Key, asyncio.Future[bytes]] = {}

    async def view(self, owner: str, batch_id: str, read: Callable[[], bytes]) -> bytes:
        """A batch's JSON, as it was ``FRESH_SECONDS`` ago or later.

        Args:
            owner: Who asks.
            batch_id: The batch.
            read: Reads it from the database; called by another thread.

        Raises:
            HelixError: Whatever ``read`` raises.
        """
        key = owner, batch_id
        found, until = self._shown.get(key, (b"", 0.0))
        if time.monotonic() < until:
            return found
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.ensure_future(run_in_threadpool(read))
            reading.add_done_callback(lambda done: self._note(key, done))
        # One client that leaves must not end the reading for the others.
        return await asyncio.shield(reading)

    def forget(self, owner: str, batch_id: str) -> None:
        """The batch has changed: what was read before, or is just being read, is not shown any more."""
        self._shown.pop((owner, batch_id), None)
        self._reading.pop((owner, batch_id), None)

    def _note(self, key: _Key, reading: asyncio.Future[bytes]) -> None:
        is_current = self._reading.get(key) is reading
        if is_current:
            del self._reading[key]
        if reading.cancelled() or reading.exception() is not None or not is_current:
            return
        self._shown.pop(key, None)
        self._shown[key] = reading.result(), time.monotonic() + FRESH_SECONDS
        if len(self._shown) > _MOST:
            del self._shown[next(iter(self._shown))]
