"""stored: a request becomes a stored job, which does not stay behind when its client goes away meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from helix_jobs.api.context import Context
    from helix_jobs.api.interactive import Call


async def stored(context: Context, call: Call, listener: str | None = None) -> int:
    """Store a request and have its message sent; returns the job's id.

    Where this is cancelled, the thread that stores goes on. The job is then cancelled once it is there, unless it has
    an idempotency key, under which its client may come back.

    Args:
        context: The server.
        call: What is asked.
        listener: Who reads the answer while it grows.

    Raises:
        Problem: No worker runs, or the broker does not answer.
        HelixError: The request is refused, or cannot be stored.
    """
    context.outbox.require_broker()
    storing = asyncio.ensure_future(run_in_threadpool(_store, context, call, listener))
    try:
        return await asyncio.shield(storing)
    except asyncio.CancelledError:
        storing.add_done_callback(lambda done: _abandon(context, call, done))
        raise


def _store(context: Context, call: Call, listener: str | None) -> int:
    job_id = context.interactive.store(call, listener)
    context.outbox.send(job_id)
    return job_id


def _abandon(context: Context, call: Call, done: asyncio.Future[int]) -> None:
    if not done.cancelled() and done.exception() is None and call.idempotency_key is None:
        asyncio.get_running_loop().run_in_executor(None, context.interactive.cancel, done.result())
