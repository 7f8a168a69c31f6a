"""Interactive: one request of a client, stored as a job, and read back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.api.idempotency import stored_key
from helix_jobs.api.problems import Problem, problem_of_job
from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import HelixError, NotFoundError
from helix_jobs.intake.forms import parse_job
from helix_jobs.intake.limits import Limits
from helix_jobs.intake.sampling_fields import SamplingReader
from helix_jobs.results.openai import openai_line
from helix_jobs.storage import batch_changes
from helix_jobs.storage.batches import new_batch_id
from helix_jobs.storage.records import NewBatch
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
        number: Which of the client's prompts it asks about, from 0 on.
        count: How many prompts the client has sent.
    """

    endpoint: str
    body: Mapping[str, Any]
    size: int
    owner: str
    idempotency_key: str | None = None
    number: int = 0
    count: int = 1


class Interactive:
    """Stores, reads and cancels single requests. Every method blocks, and may be called by any thread.

    Args:
        settings: The limits.
        database: The database.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._sampling = SamplingReader(SamplingParams())
        self._limits = Limits.of(settings)

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
            idempotency_key=stored_key("http", call.owner, call.idempotency_key, number=call.number),
            interactive=True,
        )
        return self._database.transact(lambda c: store_request(c, batch, job, place=(call.number, call.count)))

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


def _may_grow(request: Mapping[str, Any]) -> bool:
    """Whether the answer can be read while it grows; others come whole at their end."""
    sampling = request["sampling"]
    return "score_choices" not in request and not any(sampling.get(name) for name in _WHOLE)
