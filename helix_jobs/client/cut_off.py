"""Resubmit jobs whose answers max_tokens cut off, with a larger limit, as a new batch.

A job with several choices is submitted again if one of them was cut off, with all of its choices.

Trade-off: each cut answer stays its job's result, and the longer one is in another batch. Queueing the same jobs again
would discard answers before there are better ones.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import InputError
from helix_jobs.intake.stored_lines import line_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.client.client import HelixClient
    from helix_jobs.client.submission import Submission
    from helix_jobs.storage.records import JobResult

_DEFAULT_LIMIT: Final = SamplingParams().max_tokens


def resubmit_cut(client: HelixClient, batch_id: str, max_tokens: int) -> Submission:
    """Store the jobs of a batch that a smaller ``max_tokens`` cut off as a new batch with this limit.

    A second call gives the same batch, unless retried jobs have been cut off since. Answers that the model's context
    cut off are left alone: no limit helps them.

    Trade-off: if jobs were cut off since, the new batch also holds the earlier ones, and answers them a second time. In
    return, a batch always holds every job that was cut off when it was made, independent of other batches.

    Raises:
        NotFoundError: No such batch.
        InputError: The batch still runs, or has no such job.
    """
    status = client.status(batch_id)
    if not status.done:
        raise InputError(f"batch {batch_id} still runs; wait for its end (helix watch {batch_id})")
    jobs, chosen = blake2b(digest_size=16), False
    for result in _cut(client.results(batch_id), max_tokens):
        jobs.update(b"%d\n" % result.job_id)
        chosen = True
    if not chosen:
        raise InputError(f"no answer of batch {batch_id} was cut off by a max_tokens below {max_tokens}")
    return client.submit(
        (_line(result, max_tokens) for result in _cut(client.results(batch_id), max_tokens)),
        name=f"{status.name or batch_id}, cut off",
        idempotency_key=f"{batch_id} cut off, max_tokens {max_tokens}, jobs {jobs.hexdigest()}",
        metadata={"retry_of": batch_id},
    )


def _cut(results: Iterator[JobResult], max_tokens: int) -> Iterator[JobResult]:
    """The results that a smaller limit cut off, one for each job. A prompt that was only scored has no limit."""
    last = None
    for result in results:
        if result.job_id == last:
            continue
        limit = result.request.get("sampling", {}).get("max_tokens", _DEFAULT_LIMIT)
        if result.finish_reason == "length" and 0 < limit < max_tokens and (result.completion_tokens or 0) >= limit:
            last = result.job_id
            yield result


def _line(result: JobResult, max_tokens: int) -> dict[str, Any]:
    """The input line of the result's job, with the new limit."""
    own = {"custom_id": result.custom_id, "priority": result.priority}
    given = {name: value for name, value in own.items() if value}
    return {**line_of(result.request), **given, "max_tokens": max_tokens}
