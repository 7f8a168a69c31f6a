"""BatchReadings: a batch is read for all who ask for it within a quarter of a second.

Trade-off: what others do, such as a worker that ends a job, is seen a quarter of a second later at most. Without this
each client that polls costs a reading of the database. What this server changes is seen at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from helix_jobs.api.guards import SAFE_METHODS
from helix_jobs.errors import NotFoundError
from helix_jobs.intake.forms import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

FRESH_SECONDS: Final = 0.25
# Batches whose reading is kept.
_MOST: Final = 256
# What is asked there makes jobs of its own, and changes no batch.
_GENERATING: Final = frozenset(ENDPOINTS)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A batch as it was read.

    Attributes:
        owner: Whose it is.
        body: Its object as JSON.
        begun_at: When the reading began.
        version: How often something had been changed by then.
    """

    owner: str
    body: bytes
    begun_at: float
    version: int


class BatchReadings:
    """Used by the event loop's thread, except for ``forget``.

    Args:
        read: Reads a batch by its id: its owner and its object. Called on other threads.
        clock: Seconds that only grow.
    """

    def __init__(
        self, read: Callable[[str], tuple[str, dict[str, Any]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        # Batch -> its last reading, the latest read last.
        self._readings: dict[str, _Reading] = {}
        # Batch -> the reading under way, and the version at its beginning.
        self._under_way: dict[str, tuple[int, asyncio.Future[_Reading]]] = {}
        self._lock = threading.Lock()
        self._version = 0

    def forget(self) -> None:
        """This server has changed something: whoever asks from now on is not given what was read before."""
        with self._lock:
            self._version += 1

    def at_hand(self, owner: str, api_id: str) -> bytes | None:
        """An owner's batch as JSON, as it was read a moment ago; None if it has to be read."""
        found = self._readings.get(api_id)
        return found.body if found is not None and found.owner == owner and self._is_fresh(found) else None

    async def body(self, owner: str, api_id: str, *, anew: bool = False) -> bytes:
        """An owner's batch as JSON.

        Args:
            owner: Who asks.
            api_id: The batch.
            anew: Begin a reading for this request.

        Raises:
            NotFoundError: The owner has no such batch.
            DatabaseUnreachableError: The database does not answer.
        """
        found = self._readings.get(api_id)
        if anew or found is None or not self._is_fresh(found):
            found = await asyncio.shield(self._begin(api_id) if anew else self._shared(api_id))
        if found.owner != owner:
            raise NotFoundError("there is no such batch; GET /v1/batches lists them")
        return found.body

    def _is_fresh(self, reading: _Reading) -> bool:
        return reading.version == self._version and self._clock() - reading.begun_at <= FRESH_SECONDS

    def _shared(self, api_id: str) -> asyncio.Future[_Reading]:
        """The reading under way, if nothing was changed since it began; else a new one."""
        version, reading = self._under_way.get(api_id, (None, None))
        return reading if reading is not None and version == self._version else self._begin(api_id)

    def _begin(self, api_id: str) -> asyncio.Future[_Reading]:
        begun_at, version = self._clock(), self._version

        def read() -> _Reading:
            owner, batch = self._read(api_id)
            return _Reading(owner, bytes(JSONResponse(batch).body), begun_at, version)

        def ended(reading: asyncio.Future[_Reading]) -> None:
            if self._under_way.get(api_id) == (version, reading):
                del self._under_way[api_id]
            # Looked at here, as all who waited may have gone.
            if not reading.cancelled() and reading.exception() is None:
                self._keep(api_id, reading.result())

        reading = asyncio.ensure_future(run_in_threadpool(read))
        self._under_way[api_id] = version, reading
        reading.add_done_callback(ended)
        return reading

    def _keep(self, api_id: str, reading: _Reading) -> None:
        before = self._readings.pop(api_id, None)
        # Two readings may end in either order: one that began before a change must not replace one from behind it.
        if before is not None and (before.version, before.begun_at) > (reading.version, reading.begun_at):
            reading = before
        self._readings[api_id] = reading
        while len(self._readings) > _MOST:
            del self._readings[next(iter(self._readings))]


class Forgetting:
    """ASGI middleware: after a request that may have changed a batch, and before its answer, readings are forgotten.

    Args:
        app: The application behind it.
        readings: The readings.
    """

    def __init__(self, app: ASGIApp, readings: BatchReadings) -> None:
        self._app = app
        self._readings = readings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and forget."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS or scope["path"] in _GENERATING:
            await self._app(scope, receive, send)
            return

        async def send_after(message: Message) -> None:
            self._readings.forget()
            await send(message)

        try:
            await self._app(scope, receive, send_after)
        finally:
            self._readings.forget()  # also where nothing could be sent, or work goes on behind the answer
