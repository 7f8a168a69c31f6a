"""One reading of a batch for all who ask within a moment: whom it serves, and when it is not given out any more."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.api.batch_readings import FRESH_SECONDS, BatchReadings, Forgetting
from helix_jobs.errors import DatabaseUnreachableError, NotFoundError

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send


class Store:
    """A batch that changes, read by threads that a test holds."""

    def __init__(self) -> None:
        self.status = "in_progress"
        self.reads, self.seen = 0, 0
        self.begun = threading.Semaphore(0)
        self.error: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.now = 1_000.0
        self.readings = BatchReadings(self.read, lambda: self.now)

    def read(self, api_id: str) -> tuple[str, dict[str, Any]]:
        status = self.status
        self.reads += 1
        self.begun.release()
        assert self.go_on.wait(30)
        if self.error is not None:
            raise self.error
        return "mine", {"id": api_id, "status": status}

    async def has_read(self, times: int) -> None:
        """Wait until so many readings have begun."""
        for _ in range(times - self.seen):
            assert await asyncio.to_thread(self.begun.acquire, timeout=30)
        self.seen = times

    async def ask(self, *, anew: bool = False) -> str:
        found: str = json.loads(await self.readings.body("mine", "batch_1", anew=anew))["status"]
        return found


def test_all_who_ask_at_once_are_served_by_one_reading() -> None:
    store = Store()

    async def run() -> list[str]:
        return await asyncio.gather(*[store.ask() for _ in range(50)])

    assert asyncio.run(run()) == ["in_progress"] * 50
    assert store.reads == 1


def test_a_reading_is_given_out_for_a_moment_only() -> None:
    store = Store()

    async def run() -> None:
        assert store.readings.at_hand("mine", "batch_1") is None
        await store.ask()
        store.status = "completed"
        store.now += FRESH_SECONDS
        assert store.readings.at_hand("mine", "batch_1") is not None
        assert await store.ask() == "in_progress"
        store.now += 0.001
        assert store.readings.at_hand("mine", "batch_1") is None
        assert await store.ask() == "completed"

    asyncio.run(run())
    assert store.reads == 2


def test_another_owner_is_given_nothing_however_fresh_it_is() -> None:
    store = Store()

    async def run() -> None:
        await store.ask()
        assert store.readings.at_hand("yours", "batch_1") is None
        with pytest.raises(NotFoundError):
            await store.readings.body("yours", "batch_1")

    asyncio.run(run())


def test_what_was_read_before_a_change_is_given_to_nobody_who_comes_after_it() -> None:
    store = Store()

    async def run() -> None:
        await store.ask()
        store.status = "cancelling"
        store.readings.forget()
        assert store.readings.at_hand("mine", "batch_1") is None
        assert await store.ask() == "cancelling"
        # A reading that began before the change and ends behind it.
        store.now += 2 * FRESH_SECONDS
        store.go_on.clear()
        early = asyncio.ensure_future(store.ask())
        await store.has_read(3)
        store.status = "cancelled"
        store.readings.forget()
        late = asyncio.ensure_future(store.ask())
        await store.has_read(4)
        store.go_on.set()
        assert await asyncio.gather(early, late) == ["cancelling", "cancelled"]
        assert await store.ask() == "cancelled"

    asyncio.run(run())
    assert store.reads == 4


def test_who_asks_for_a_reading_of_its_own_gets_one() -> None:
    store = Store()

    async def run() -> None:
        await store.ask()
        store.status = "completed"
        assert await store.ask() == "in_progress"
        assert await store.ask(anew=True) == "completed"
        assert await store.ask() == "completed"

    asyncio.run(run())
    assert store.reads == 2


def test_a_failure_is_told_to_all_who_wait_and_kept_for_nobody() -> None:
    store = Store()

    async def run() -> None:
        store.error = DatabaseUnreachableError("the database does not answer")
        asked = await asyncio.gather(*[store.ask() for _ in range(3)], return_exceptions=True)
        assert [type(each) for each in asked] == [DatabaseUnreachableError] * 3
        assert store.reads == 1
        store.error = None
        assert await store.ask() == "in_progress"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path", "forgets"),
    [
        ("POST", "/v1/batches/batch_1/cancel", True),
        ("POST", "/batches/1/retry", True),
        ("DELETE", "/v1/files/file-1", True),
        ("GET", "/v1/batches/batch_1", False),
        ("POST", "/v1/completions", False),
    ],
)
def test_a_change_is_forgotten_before_its_answer(method: str, path: str, forgets: bool) -> None:  # noqa: FBT001
    store = Store()
    at_hand: list[bytes | None] = []

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def sent(_message: Message) -> None:
        at_hand.append(store.readings.at_hand("mine", "batch_1"))

    async def run() -> None:
        await store.ask()
        scope = {"type": "http", "method": method, "path": path}
        await Forgetting(answer, store.readings)(scope, asyncio.Queue[Any]().get, sent)

    asyncio.run(run())
    assert [found is None for found in at_hand] == [forgets]
