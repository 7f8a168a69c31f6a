"""ModelDigests: says in a worker's row which files its models have, once they have been read for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import HelixError
from helix_jobs.worker.setup import NOT_READ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)

# Seconds until the row is written again where the database did not answer.
LOOK_SECONDS: Final = 30.0
_NOT_READABLE: Final = "could not be read, see the worker's log"


class ModelDigests:
    """Reads the digests while the worker answers: the files of a large model take minutes. Called on one thread.

    Trade-off: until then, and for ever where the worker ends before, a manifest says that they are not read; files that
    somebody replaces meanwhile are digested as they are then. In return no job waits for them. One thread reads all, to
    take little of what the engine needs.

    Args:
        settings: Name the models.
        setup: The worker's setup without digests.
        describe: Writes a setup into the worker's row.
        on_progress: Receives what is read.
    """

    def __init__(
        self,
        settings: Settings,
        setup: Mapping[str, Any],
        describe: Callable[[Mapping[str, Any]], None],
        on_progress: Callable[[str], None] = logger.info,
    ) -> None:
        self._settings = settings
        self._setup = setup
        self._describe = describe
        self._on_progress = on_progress
        self._found: Mapping[str, Any] | None = None
        self._is_done = setup.get("digests") != NOT_READ

    def look(self) -> None:
        """Read the digests and write them, if that is still to be done.

        Raises:
            DatabaseUnreachableError: The row could not be written; the next call writes it.
        """
        if self._is_done:
            return
        if self._found is None:
            self._found = self._read()
        self._describe(self._found)
        self._is_done = True

    def _read(self) -> Mapping[str, Any]:
        """The setup with digests; with the reason why there are none, which keeps no worker from its work."""
        from helix_jobs.engine.loading.model_digest import served_digests

        found = dict(self._setup)
        try:
            digests = served_digests(self._settings, self._on_progress)
        except (HelixError, OSError) as error:
            logger.warning("manifests will lack the digests of this worker's models: %s", error)
            return found | {"digests": _NOT_READABLE}
        del found["digests"]
        for part, digest in (("target", digests.target), ("draft", digests.draft)):
            if part in found and digest is not None:
                found[part] = {**found[part], "digest": digest}
        if digests.adapters:
            found["adapters"] = dict(digests.adapters)
        return found
