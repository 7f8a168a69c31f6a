"""PatientConsumer: Celery's consumer that waits for a broker that answers "no" as it does for one that is away.

A replica takes no writes, a full server no messages, a user may lose a right, a key may hold something else: all of
that is mended at the broker, and running jobs go on meanwhile. Celery alone ends over it, or connects again at once.
"""

from __future__ import annotations

import logging
import re
import time
from typing import Any, Final

from celery.exceptions import WorkerTerminate
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from helix_jobs.broker.faults import is_refusal
from helix_jobs.exhaustion import explain_missing_descriptor
from helix_jobs.redaction import redact

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 10.0
# After this long without a refusal the next one is news.
FORGET_SECONDS: Final = 60.0
_SLICE_SECONDS: Final = 0.2
# Loggers of Celery and kombu that say each refusal, some of them with a traceback.
WHO_LOG_REFUSALS: Final = (
    "celery.worker.consumer.consumer",
    "celery.worker.loops",  # an acknowledgement that is refused while the loop is put away
    "kombu.transport.redis",
    *("kombu.asynchronous.hub", "kombu.asynchronous.timer"),  # what is done every few seconds
)
# What redis-py puts before the server's own words.
_PIPELINE: Final = re.compile(r"^Command # .* of pipeline caused error: ", re.DOTALL)


class PatientConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Says once what is refused, and tries again with growing pauses."""

    _said = ""
    _pause = FIRST_PAUSE_SECONDS
    _refused_at = float("-inf")

    def ensure_connected(self, conn: Any) -> Any:  # noqa: ANN401  (kombu has no types)
        """Wait for a broker that is away for as long as it takes, but end where no descriptor is left to reach it.

        So Celery ends once it is connected; it would try its first connection for ever.
        """

        def say_or_end(error: Exception, seconds: float) -> None:
            if missing := explain_missing_descriptor():
                logger.critical("the broker cannot be reached: %s", missing)
                raise WorkerTerminate(1) from error
            if not is_refusal(error):
                uri, reason = redact(conn.as_uri()), redact(str(error)).rstrip(". ")
                logger.error("the broker at %s does not answer: %s; trying again in %.0f s", uri, reason, seconds)

        conn.ensure_connection(say_or_end, self.app.conf.broker_connection_max_retries, callback=maybe_shutdown)
        self.first_connection_attempt = False
        return conn

    def on_connection_error_before_connected(self, exc: Exception) -> None:  # noqa: D102  (Celery's hook)
        self._wait(exc)
        super().on_connection_error_before_connected(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:  # noqa: D102  (Celery's hook)
        self._wait(exc)
        super().on_connection_error_after_connected(exc)

    def _wait(self, error: Exception) -> None:
        if not is_refusal(error):
            return
        began = time.monotonic()
        if began - self._refused_at > FORGET_SECONDS:
            self._said, self._pause = "", FIRST_PAUSE_SECONDS
        reason = _PIPELINE.sub("", str(error)).rstrip(". ")
        if reason != self._said:
            self._said = reason
            logger.warning(
                "the broker refuses: %s; running jobs go on, and others wait until it is mended", redact(reason)
            )
        while time.monotonic() - began < self._pause:
            maybe_shutdown()
            time.sleep(_SLICE_SECONDS)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._refused_at = time.monotonic()


def unless_refused(record: logging.LogRecord) -> bool:
    """A filter of Celery's and kombu's log: a refusal is said here, once, and not at each attempt."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    raised = (record.exc_info[1],) if record.exc_info else ()
    return not any(isinstance(one, Exception) and is_refusal(one) for one in (*arguments, *raised))
