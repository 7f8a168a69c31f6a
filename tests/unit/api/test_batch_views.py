"""Batch objects that were read a moment ago."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from helix_jobs.api import batch_views
from helix_jobs.api.batch_views import BatchViews
from helix_jobs.errors import NotFoundError

if TYPE_CHECKING:
    import pytest


class Table:
    """What is read, and how often it was."""

    def __init__(self) -> None:
        self.value = b"one"
        self.reads = 0
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def read(self) -> bytes:
        self.reads += 1
        self.begun.release()
        value = self.value
        assert self.may_end.wait(30)
        return value


def test_many_who_ask_at_once_are_answered_by_one_reading() -> None:
    table = Table()

    async def ask() -> list[bytes]:
        views = BatchViews()
        found = await asyncio.gather(*(views.view("me", "b", table.read) for _ in range(20)))
        return [*found, await views.view("me", "b", table.read)]

    assert set(asyncio.run(ask())) == {b"one"}
    assert table.reads == 1


def test_owners_and_batches_are_apart() -> None:
    table = Table()

    async def ask() -> None:
        views = BatchViews()
        for owner, batch in (("me", "a"), ("me", "b"), ("you", "a")):
            await views.view(owner, batch, table.read)

    asyncio.run(ask())
    assert table.reads == 3


def test_what_is_old_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_views, "FRESH_SECONDS", 0.0)
    table = Table()

    async def ask() -> list[bytes]:
        views = BatchViews()
        first = await views.view("me", "b", table.read)
        table.value = b"two"
        return [first, await views.view("me", "b", table.read)]

    assert asyncio.run(ask()) == [b"one", b"two"]


def test_a_change_is_shown_at_once_even_while_the_old_state_is_being_read() -> None:
    table = Table()

    async def ask() -> tuple[bytes, bytes, bytes]:
        views = BatchViews()
        await views.view("me", "b", table.read)
        table.value = b"two"
        views.forget("me", "b")
        second = await views.view("me", "b", table.read)
        views.forget("me", "b")
        table.may_end.clear()
        late = asyncio.ensure_future(views.view("me", "b", table.read))
        for _ in range(3):
            await asyncio.to_thread(table.begun.acquire)
        table.value = b"three"
        views.forget("me", "b")
        table.may_end.set()
        await late
        return second, await late, await views.view("me", "b", table.read)

    assert asyncio.run(ask()) == (b"two", b"two", b"three")


def test_an_error_is_everybodys_and_is_not_kept() -> None:
    def read() -> bytes:
        raise NotFoundError("there is no such batch")

    async def ask() -> list[bytes | BaseException]:
        views = BatchViews()
        asked = (views.view("me", "b", read) for _ in range(3))
        return [*await asyncio.gather(*asked, return_exceptions=True), await views.view("me", "b", Table().read)]

    *errors, last = asyncio.run(ask())
    assert [type(error) for error in errors] == [NotFoundError] * 3
    assert last == b"one"


def test_who_leaves_does_not_end_the_reading_for_others() -> None:
    table = Table()

    async def ask() -> bytes:
        views = BatchViews()
        table.may_end.clear()
        leaver = asyncio.ensure_future(views.view("me", "b", table.read))
        stays = asyncio.ensure_future(views.view("me", "b", table.read))
        await asyncio.to_thread(table.begun.acquire)
        leaver.cancel()
        table.may_end.set()
        return await stays

    assert asyncio.run(ask()) == b"one"


def test_not_every_batch_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_views, "_MOST", 2)
    table = Table()

    async def ask() -> None:
        views = BatchViews()
        for batch in ("a", "b", "c", "b", "c", "a"):
            await views.view("me", batch, table.read)

    asyncio.run(ask())
    assert table.reads == 4
