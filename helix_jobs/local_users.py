"""LocalUsers: the commands that use the worker behind ``submit --local``, so that the last one stops it.

Three files under HELIX_HOME are locked, never read. The operating system drops such a lock however its holder ends, so
no ended command is counted.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

from helix_jobs.files import make_private_directory, private_descriptor
from helix_jobs.locks import FileLock

if TYPE_CHECKING:
    from pathlib import Path

POLL_SECONDS: Final = 0.2
# The log of the local worker, under HELIX_HOME.
LOG_NAME: Final = "worker.log"


class LocalUsers:
    """The users of one home's local worker, seen by one of them or by the worker itself.

    Trade-off: Windows has no shared file locks without a library, so there every command stops the worker that it
    started. The others notice at their next check and start one.

    Args:
        home: HELIX_HOME, which must exist.

    Attributes:
        starter: Held by the command that starts a worker, until the worker is ready, so that two commands never start
            one each.
        worker: Held by the local worker for as long as it lives.
    """

    def __init__(self, home: Path) -> None:
        directory = make_private_directory(home / "local")
        self._path = directory / "users.lock"
        self._descriptor: int | None = None
        self.starter = FileLock(directory / "starter.lock")
        self.worker = FileLock(directory / "worker.lock")

    def enter(self) -> bool:
        """Become a user; False while the last user's worker is about to stop."""
        return self._lock(shared=True)

    def leave(self) -> bool:
        """Stop being a user. True if there is no other user."""
        self._release()
        alone = self._lock(shared=False)
        self._release()
        return alone

    def close_behind_the_last(self) -> None:
        """Wait until there are no users, then let none enter until this process ends: the worker stops now."""
        while not self._lock(shared=False):
            time.sleep(POLL_SECONDS)

    def is_worker_there(self) -> bool:
        """Whether a local worker is running."""
        if self.worker.acquire():
            self.worker.release()
            return False
        return True

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _lock(self, *, shared: bool) -> bool:
        if sys.platform == "win32":
            return True
        import fcntl

        descriptor = private_descriptor(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True
