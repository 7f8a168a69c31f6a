"""BatchClaim: this server works at a batch, and no other does meanwhile."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from helix_jobs.errors import HelixError
from helix_jobs.storage import api_batches

if TYPE_CHECKING:
    from types import TracebackType

    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

_PARTS_OF_A_LEASE: Final = 6
_LONGEST_PAUSE: Final = 1.0


class BatchInterrupted(Exception):  # noqa: N818  (ends the work at a batch, and is no fault)
    """The work at a batch is to end: its client has cancelled it, another server has it, or this one stops."""


class BatchClaim:
    """Moves a batch's ``due_at`` on, from a thread of its own, as long as the ``with`` block runs.

    Trade-off: with a shorter lease the batch of a server that died is taken up sooner, but a server that hangs for a
    moment loses it sooner, too. Losing it costs double work, and no line: both store the same jobs once.

    Args:
        database: The database.
        batch: The batch, just claimed.
        lease: Seconds without a sign of this server after which another one may take the batch.
    """

    def __init__(self, database: Database, batch: ApiBatch, lease: float) -> None:
        assert batch.due_at is not None, "claimed until then"
        self._database = database
        self._batch_id = batch.id
        self._due_at = batch.due_at
        self._lease = timedelta(seconds=lease)
        self._pause = min(_LONGEST_PAUSE, lease / _PARTS_OF_A_LEASE)
        self._ended = threading.Event()
        self._interrupted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="helix-claim", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def due_at(self) -> datetime:
        """The time of the claim's end, as the database has it. Settled once the block has ended."""
        return self._due_at

    def interrupt(self) -> None:
        """Let the next ``check`` end the work."""
        self._interrupted.set()

    def check(self) -> None:
        """Go on, if that is still wanted.

        Raises:
            BatchInterrupted: It is not.
        """
        if self._interrupted.is_set():
            raise BatchInterrupted

    def _run(self) -> None:
        while not self._ended.wait(self._pause):
            try:
                self._extend()
            except HelixError as error:
                logger.warning("the claim on %s is not extended: %s", self._batch_id, error)

    def _extend(self) -> None:
        until = datetime.now(UTC) + self._lease
        with self._database.write() as c:
            is_held = api_batches.move_due(c, self._batch_id, self._due_at, until)
            is_wanted = not api_batches.is_cancelling(c, self._batch_id)
        if is_held:
            self._due_at = until
        if not is_held or not is_wanted:
            self.interrupt()
