"""What becomes of a request whose client leaves before it is stored, and of its message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from helix_jobs.api.context import Context
from helix_jobs.api.interactive import Call
from helix_jobs.api.storing import stored
from helix_jobs.intake.forms import COMPLETION_ENDPOINT
from helix_jobs.storage.schema import jobs
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.worker_box import Box


def states(box: Box) -> list[str]:
    with box.read() as c:
        return list(c.execute(select(jobs.c.state)).scalars())


@pytest.mark.parametrize(("key", "state"), [(None, "cancelled"), ("k", "queued")])
def test_a_client_that_leaves_while_its_request_is_stored_leaves_no_job_behind(
    embedded_box: Box, key: str | None, state: str
) -> None:
    database = embedded_box.database()
    context = Context.of(embedded_box.settings, database)
    call = Call(COMPLETION_ENDPOINT, {"prompt": "a"}, 20, "somebody", key)

    async def leave() -> None:
        with embedded_box.own_database.write():  # the request cannot be stored meanwhile
            asking = asyncio.ensure_future(stored(context, call))
            await asyncio.wait([asking], timeout=0.2)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        while states(embedded_box) != [state]:
            await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(states, embedded_box))])

    try:
        asyncio.run(asyncio.wait_for(leave(), 45))
        assert states(embedded_box) == [state]
    finally:
        context.close()
        database.dispose()


@pytest.mark.redis
def test_a_request_that_waits_is_marked_as_published(box: Box) -> None:
    box.start_worker()  # an embedded broker is the worker's
    box.started[0].send(19)  # SIGSTOP: nobody claims
    database = box.database()
    context = Context.of(box.settings, database)
    call = Call(COMPLETION_ENDPOINT, {"prompt": "a"}, 20, "somebody")
    try:
        asyncio.run(stored(context, call))

        def marks() -> list[object]:
            with box.read() as c:
                return list(c.execute(select(jobs.c.published_at)).scalars())

        wait_until(lambda: None not in marks(), "the job is marked")
    finally:
        context.close()
        database.dispose()
        box.started[0].send(18)  # SIGCONT
    wait_until(lambda: states(box) == ["succeeded"], lambda: str(states(box)))
