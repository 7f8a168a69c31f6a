"""Jobs whose answers max_tokens cut, taken again with more room, as a batch of their own.

Trade-off: the cut answers stay what they were, the one result of their jobs, and the longer ones stand beside them in
another batch. To queue the same jobs again would throw answers away before there are better ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.jobs.client import HelixClient
    from helix_jobs.jobs.store import JobResult
    from helix_jobs.jobs.submission import Submission


def resubmit_cut(client: HelixClient, batch_id: str, max_tokens: int) -> Submission:
    """Store the jobs of a batch that ended at a smaller ``max_tokens`` as a new batch with this one.

    Doing it twice gives the same batch. Answers that the model's context cut are left alone: no limit helps them.

    Raises:
        NotFoundError: No such batch.
        InputError: It still runs, or has no such job.
    """
    status = client.status(batch_id)
    if not status.done:
        raise InputError(f"batch {batch_id} still runs; wait for its end (helix watch {batch_id})")
    if next(cut_lines(client.results(batch_id), max_tokens), None) is None:
        raise InputError(f"no answer of batch {batch_id} was cut off by a max_tokens below {max_tokens}")
    return client.submit(
        cut_lines(client.results(batch_id), max_tokens),
        name=f"{status.name or batch_id}, cut off",
        idempotency_key=f"{batch_id} cut off, max_tokens {max_tokens}",
        metadata={"retry_of": batch_id},
    )


def cut_lines(results: Iterator[JobResult], max_tokens: int) -> Iterator[dict[str, Any]]:
    """The lines of those jobs, as a person would write them, with the new limit."""
    default = SamplingParams().max_tokens
    for result in results:
        sampling = dict(result.request.get("sampling", {}))
        limit = sampling.get("max_tokens", default)
        if result.finish_reason != "length" or limit >= max_tokens or (result.completion_tokens or 0) < limit:
            continue
        own = {"custom_id": result.custom_id, "metadata": result.request.get("metadata"), "priority": result.priority}
        kept = ("prompt", "messages", "chat_template_kwargs")
        asked = {name: result.request[name] for name in kept if name in result.request}
        yield {name: value for name, value in own.items() if value} | asked | sampling | {"max_tokens": max_tokens}
