"""Interactive: one request of a client, stored as a job, published at once, and waited for."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.api.idempotency import stored_key
from helix_jobs.api.problems import Problem, problem_of_job
from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, broker_url, read_queue_names
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import HelixError, NotFoundError
from helix_jobs.intake.forms import parse_job
from helix_jobs.intake.limits import Limits
from helix_jobs.intake.sampling_fields import SamplingReader
from helix_jobs.redis_url import MEMORY_URL
from helix_jobs.results.openai import openai_line
from helix_jobs.storage import batch_changes, publishing
from helix_jobs.storage.batches import new_batch_id
from helix_jobs.storage.records import NewBatch, PublishableJob
from helix_jobs.storage.results import answers_of
from helix_jobs.storage.single_request import store_request
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.new_job import NewJob
    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

# What is asked about an answer beside its text is known with the stored answer.
_AGAIN: Final = "send it again, under another idempotency key if it had one"
_WHOLE: Final = ("echo", "logprobs", "prompt_logprobs", "top_logprobs")


@dataclass(frozen=True, slots=True)
class Call:
    """A client's request.

    Attributes:
        endpoint: ``/v1/chat/completions`` or ``/v1/completions``.
        body: Its parsed JSON.
        size: Bytes of the JSON.
        owner: Whose it is.
        idempotency_key: The client's name for it: the same request under the same key is answered once.
    """

    endpoint: str
    body: Mapping[str, Any]
    size: int
    owner: str
    idempotency_key: str | None = None


class Interactive:
    """Stores, publishes, reads and cancels single requests. Every method blocks, and may be called by any thread.

    Args:
        settings: The limits, and where the broker is.
        database: The database.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._sampling = SamplingReader(SamplingParams())
        self._limits = Limits.of(settings)
        self._publisher: CeleryPublisher | None = None
        # kombu's connection serves one thread at a time.
        self._lock = threading.Lock()

    def checked(self, call: Call) -> NewJob:
        """The job that a request becomes.

        Raises:
            InvalidFieldError: The request is wrong; names the field, the reason and the remedy.
        """
        line = {"method": "POST", "url": call.endpoint, "body": call.body, "priority": MAX_PRIORITY}
        return parse_job(line, self._sampling, self._limits, line=1, size=call.size)

    def store(self, call: Call, listener: str | None = None) -> int:
        """Check a request and store it; returns the job's id.

        Args:
            call: The request.
            listener: Who reads the answer while it grows; see ``token_channel``.

        Raises:
            InvalidFieldError: The request is wrong; names the field, the reason and the remedy.
            IdempotencyConflictError: The key was used with another request.
            DatabaseUnreachableError: The database does not answer; nothing is stored.
        """
        job = self.checked(call)
        if listener is not None and _may_grow(job.request):
            job.request["stream"] = listener
        now = datetime.now(UTC)
        batch = NewBatch(
            id=new_batch_id(now),
            source=call.endpoint,
            created_at=now,
            idempotency_key=stored_key("http", call.owner, call.idempotency_key),
            interactive=True,
        )
        return self._database.transact(lambda c: store_request(c, batch, job))

    def answer(self, job_id: int) -> dict[str, Any]:
        """The answer of an ended job, as OpenAI's body.

        Raises:
            Problem: The job failed, was cancelled, or was removed.
            DatabaseUnreachableError: The database does not answer.
        """
        with self._database.read() as connection:
            answers = answers_of(connection, job_id)
        if not answers:
            raise Problem(
                410, f"the request was removed or started again before its answer was read; {_AGAIN}", code="removed"
            )
        first = answers[0]
        if first.state == JobState.CANCELLED:
            raise Problem(409, f"the request was cancelled; {_AGAIN}", code="cancelled")
        if first.state != JobState.SUCCEEDED:
            raise problem_of_job(first.error_code, first.error_message)
        body: dict[str, Any] = openai_line(answers)["response"]["body"]
        return body

    def cancel(self, job_id: int) -> None:
        """Stop a job whose client has gone. Raises no HelixError."""
        try:
            self._database.transact(lambda c: batch_changes.cancel_job(c, job_id, now=datetime.now(UTC)))
        except NotFoundError:
            return
        except HelixError as error:
            logger.warning("job %d, whose client has gone, is not cancelled: %s", job_id, error)

    def close(self) -> None:
        """Close the connection to the broker."""
        with self._lock:
            if self._publisher is not None:
                self._publisher.close()
                self._publisher = None

    def publish(self, job_id: int) -> None:
        """Send the job's message. Where that fails, a worker sends it some seconds later. Raises no HelixError."""
        try:
            with self._lock:
                if self._publisher is None:
                    self._publisher = self._connected()
                if self._publisher is None:
                    return
                # Not through the window of waiting jobs, which bulk work may fill.
                self._publisher.publish([PublishableJob(job_id, MAX_PRIORITY)])
            self._database.transact(lambda c: publishing.mark_published(c, [job_id], datetime.now(UTC)))
        except HelixError as error:
            logger.warning("job %d is stored, and a worker will publish it: %s", job_id, error)

    def _connected(self) -> CeleryPublisher | None:
        """None while only a worker has a broker."""
        if self._settings.redis_url == MEMORY_URL:
            return None
        if self._settings.redis_url is None and not EmbeddedBroker(self._settings.home).is_running():
            return None
        return CeleryPublisher(broker_url(self._settings), read_queue_names(self._database))


def _may_grow(request: Mapping[str, Any]) -> bool:
    """Whether the answer can be read while it grows; others come whole at their end."""
    sampling = request["sampling"]
    return "score_choices" not in request and not any(sampling.get(name) for name in _WHOLE)
