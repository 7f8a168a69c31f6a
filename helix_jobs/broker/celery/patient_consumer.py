"""PatientConsumer: Celery's consumer, waiting for a refusing broker as for an absent one.

A replica takes no writes, a full server no messages, a user may lose a right, a key may hold something else. All of
these are mended at the broker, and running jobs go on meanwhile. Celery alone would end over them, or reconnect at
once.
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
# After this long without a refusal the next one is logged anew.
FORGET_SECONDS: Final = 60.0
_SLICE_SECONDS: Final = 0.2
# Loggers of Celery and kombu that log each refusal, some of them with a traceback.
WHO_LOG_REFUSALS: Final = (
    "celery.worker.consumer.consumer",
    "celery.worker.loops",  # an acknowledgement refused while the loop shuts down
    "kombu.transport.redis",
    *("kombu.asynchronous.hub", "kombu.asynchronous.timer"),  # operations repeated every few seconds
)
# redis-py's prefix to the server's own words.
_PIPELINE: Final = re.compile(r"^Command # .* of pipeline caused error: ", re.DOTALL)


class PatientConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Logs a refusal once, and tries again with growing pauses."""

    _said = ""
    _pause = FIRST_PAUSE_SECONDS
    _refused_at = float("-inf")

    def ensure_connected(self, conn: Any) -> Any:  # noqa: ANN401  (kombu has no types)
        """Wait for an absent broker without a limit, but end if no descriptor is left to reach it.

        Celery alone would end so only once connected; it would try its first connection for ever.
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
        # A server that becomes a replica ends blocking commands with this word. The next attempt says what it refuses.
        if reason != self._said and not reason.startswith("UNBLOCKED"):
            self._said = reason
            logger.warning(
                "the broker refuses: %s; running jobs go on, other jobs wait until the broker accepts again",
                redact(reason),
            )
        while time.monotonic() - began < self._pause:
            maybe_shutdown()
            time.sleep(_SLICE_SECONDS)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._refused_at = time.monotonic()


def unless_refused(record: logging.LogRecord) -> bool:
    """A filter for Celery's and kombu's logs: ``PatientConsumer`` logs a refusal once, not at each attempt."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    raised = (record.exc_info[1],) if record.exc_info else ()
    return not any(isinstance(one, Exception) and is_refusal(one) for one in (*arguments, *raised))
