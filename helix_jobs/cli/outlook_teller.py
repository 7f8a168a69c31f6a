"""OutlookTeller: when a batch that is followed will be done. Reckoned anew every few seconds, not at every poll."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.cli.moments import outlook_json, outlook_words, slipping_words
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.client.client import HelixClient
    from helix_jobs.outlook.batch_outlook import BatchOutlook
    from helix_jobs.storage.records import BatchStatus

# A forecast simulates the rest of the batch a hundred times, which takes some tenths of a second.
_REFRESH_SECONDS: Final = 15.0


class OutlookTeller:
    """Tells it in words or as JSON.

    Args:
        client: Reads the outlook.
        clock: Monotonic seconds.
    """

    def __init__(self, client: HelixClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._read_at: float | None = None
        self._outlook: BatchOutlook | None = None

    def words(self, status: BatchStatus) -> str | None:
        """``done about 06:40 (06:10 to 07:20)``; None where nothing is known."""
        return outlook_words(self._latest(status), status, self._client.settings)

    def slipping(self, status: BatchStatus) -> str | None:
        """A sentence about a deadline that will probably be missed; None while it will probably be kept."""
        return slipping_words(self._latest(status), status, self._client.settings)

    def json(self, status: BatchStatus) -> dict[str, Any] | None:
        """The same for programs."""
        return outlook_json(self._latest(status), status, self._client.settings)

    def _latest(self, status: BatchStatus) -> BatchOutlook | None:
        now = self._clock()
        if status.done:
            return None
        if self._read_at is None or now - self._read_at >= _REFRESH_SECONDS:
            self._read_at = now
            try:
                self._outlook = self._client.outlook(status.id)
            except HelixError:
                self._outlook = None  # the next poll outlasts the outage or ends the command
        return self._outlook
