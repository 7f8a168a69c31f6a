"""RequestEncoder: encodes claimed jobs' requests for the engine, and waits while the machine lacks resources.

Encoding may need another process, and with it descriptors, a thread and memory. No job fails for lack of them: its
request waits and is tried again. If the lack lasts, the worker ends for its supervisor, and its jobs are handed back.
If only one request gets no memory, that request is at fault.

A job may end while its request is encoded: it is cancelled, or a stopping worker hands it back. ``encode`` then returns
at once, however long the tokenizer takes.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.acceptance.stored import stored_rule
from helix_jobs.bounds import INTERACTIVE_PRIORITY, MAX_PRIORITY
from helix_jobs.errors import (
    EngineBrokenError,
    EngineError,
    ExhaustedError,
    OutOfMemoryError,
    RequestError,
    without_text,
)
from helix_jobs.exhaustion import explain_exhaustion, is_shortage
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.worker.acceptance import request_of_try
from helix_jobs.worker.complaint import Complaint

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.protocol import EngineProtocol
    from helix_jobs.engine.request import EncodedRequest
    from helix_jobs.storage.records import ClaimedJob

logger = logging.getLogger(__name__)

# How long a request waits for missing resources, and how often it is tried.
PATIENCE_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 1.0


def engine_request_id(job_id: int, lease: int) -> str:
    """Name a request inside the engine: a job that returns while its aborted request lingers is a new request."""
    return f"{job_id}.{lease}"


class RequestEncoder:
    """Encodes for one engine. Thread-safe.

    Args:
        engine: The engine, whose ``encode`` is called.
        patience: Seconds that a request waits for missing resources.
        pause: Seconds between two tries.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        *,
        patience: float = PATIENCE_SECONDS,
        pause: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._patience = patience
        self._pause = pause
        self._clock = clock
        self._passed_at = clock()
        self._complaint = Complaint(logger)

    def encode(self, claim: ClaimedJob, ending: Future[Any]) -> EncodedRequest | None:
        """Encode a claimed job's request, or return None as soon as the job has ended.

        Args:
            claim: The job.
            ending: Done when the job has ended otherwise, most likely because it was withdrawn.

        Raises:
            RequestError: The request cannot be served.
            ExhaustedError: The machine has lacked something for too long; no job is to blame.
            EngineBrokenError: It has lacked memory for too long. This job may be the cause, so attempts count.
        """
        began: float | None = None
        while not ending.done():
            try:
                encoding = self._begin(claim)
                wait([encoding, ending], return_when=FIRST_COMPLETED)
                if ending.done():
                    break
                request = encoding.result()
            except Exception as error:
                if not is_shortage(error):
                    raise
                now = self._clock()
                began = now if began is None else began
                if now - began >= self._patience:
                    raise self._verdict(error, began) from without_text(error)
                self._complaint.say(f"requests wait to be encoded: {explain_exhaustion(error)}")
            else:
                self._passed_at = self._clock()
                self._complaint.end("requests are encoded again")
                return request
            wait([ending], self._pause)
        return None

    def _begin(self, claim: ClaimedJob) -> Future[EncodedRequest]:
        """Encode on a thread of its own, abandoned if the job ends: no tokenizer can be interrupted.

        Trade-off: each prompt starts a thread; in return neither a cancelled job nor a worker's stop waits for a
        tokenizer.
        """
        encoding: Future[EncodedRequest] = Future()

        def run() -> None:
            try:
                encoding.set_result(self._encode(claim))
            except BaseException as error:  # noqa: BLE001  (it is raised where the request is waited for)
                encoding.set_exception(error)

        threading.Thread(target=run, name="helix-encode", daemon=True).start()
        return encoding

    def _encode(self, claim: ClaimedJob) -> EncodedRequest:
        try:
            stored_rule(claim.request)  # a malformed rule fails the job here, not after it has been answered
            request = request_of_try(to_engine_request(claim.id, claim.request), claim.tries)
            request = replace(
                request,
                request_id=engine_request_id(claim.id, claim.lease),
                priority=INTERACTIVE_PRIORITY if claim.interactive else min(claim.priority, MAX_PRIORITY),
            )
            return self._engine.encode(request)
        except RequestError:
            raise
        except Exception as error:
            if is_shortage(error):
                raise
            logger.error(  # noqa: TRY400  (see without_text)
                "a request could not be encoded", extra={"job_id": claim.id}, exc_info=without_text(error)
            )
            raise EngineError(f"{type(error).__name__} while encoding; the worker's log has the details") from None

    def _verdict(self, error: Exception, began: float) -> OutOfMemoryError | EngineBrokenError | ExhaustedError:
        """The error for a request that has waited in vain since ``began``."""
        reason = f"requests could not be encoded for {self._patience:.0f} s: {explain_exhaustion(error)}"
        if not isinstance(error, MemoryError):
            return ExhaustedError(reason)
        if self._passed_at > began:
            return OutOfMemoryError(
                "the worker has too little memory to encode this request; shorten the prompt, or give the worker more "
                "memory and `retry` the batch"
            )
        return EngineBrokenError(reason)
