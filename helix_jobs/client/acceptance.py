"""Accept answers by a person's own Python function: judge them here, and have refused jobs answered again.

Nothing of it lasts but what the database holds. A refusal is one transaction: the answer is there, or the job is queued
again with one try more (``storage/refusals.py``). A client that dies in between loses no answer and no job; calling
``accept_answers`` again goes on, and judges every answer that is there anew.

Trade-off: answers are judged once all jobs of the batch have ended, so that each call judges each answer once and holds
no list of them; the jobs refused then run as a small batch of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final

from helix_jobs.acceptance.patterns import check_compiles
from helix_jobs.acceptance.rule import MOST_TRIES, AcceptanceRule
from helix_jobs.errors import InputError, InvalidFieldError
from helix_jobs.storage.refusals import StoredAnswer, refuse_stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from helix_jobs.client.client import HelixClient
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import BatchStatus, JobResult

Accept = Callable[["JobResult"], bool]

REASON: Final = "the submitter's own function refused the last answer, which is kept"
# Refusals of one transaction.
_CHUNK: Final = 100


def rule_of(accept: AcceptanceRule | Mapping[str, Any] | Accept | None) -> AcceptanceRule | None:
    """The declarative rule among what ``HelixClient.submit`` takes; None for a function.

    Raises:
        InputError: The rule is wrong, or its schema or regular expression cannot be used.
    """
    if accept is None or callable(accept):
        return None
    try:
        rule = accept if isinstance(accept, AcceptanceRule) else AcceptanceRule.from_mapping(accept)
        if rule.schema is not True:
            check_compiles(rule, None)
    except InvalidFieldError as error:
        raise InputError(str(error)) from error
    return rule


def accept_answers(
    client: HelixClient, database: Database, batch_id: str, accept: Accept, *, max_tries: int, poll: float
) -> BatchStatus:
    """Judge the answers of a batch until each is accepted or has used up its tries; returns the batch's status.

    See ``HelixClient.accept``.
    """
    if not 1 <= max_tries <= MOST_TRIES:
        raise InputError(f"max_tries is {max_tries}; give 1 to {MOST_TRIES}")
    # The jobs whose new answers are to be judged; None: all.
    again: set[int] | None = None
    while True:
        status = client.wait(batch_id, poll=poll)
        refused: set[int] = set()
        for answers in _chunks(_refused(client.results(batch_id), accept, again)):
            refuse = partial(
                refuse_stored,
                batch_id=batch_id,
                answers=answers,
                max_tries=max_tries,
                reason=REASON,
                now=datetime.now(UTC),
            )
            if database.transact(refuse):
                refused.update(answer.job_id for answer in answers)
        if not refused:
            return status if again is None else client.status(batch_id)
        again = refused


def _refused(results: Iterator[JobResult], accept: Accept, among: set[int] | None) -> Iterator[StoredAnswer]:
    """The answers that the function refuses. A job of several choices is refused with the first that is."""
    for job_id, choices in groupby(results, key=lambda result: result.job_id):
        first, *others = choices
        if (among is None or job_id in among) and not all(accept(choice) for choice in (first, *others)):
            assert first.finished_at is not None, "a succeeded job has ended"
            yield StoredAnswer(job_id, first.finished_at)


def _chunks(answers: Iterator[StoredAnswer]) -> Iterator[Sequence[StoredAnswer]]:
    chunk: list[StoredAnswer] = []
    for answer in answers:
        chunk.append(answer)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
