"""StreamClients: many clients that read streamed answers at once, and what each of them has seen."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx2
from sqlalchemy import select

from helix_jobs.storage.schema import batches, jobs, results
from tests.acceptance.faults.oracle import MAX_REPORTED, Accepted
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.acceptance.faults.installation import Installation

DONE = "done"
# The connection broke, or the server was not there.
BROKEN = "broken"
# Nobody listened at the server's address, so that nothing was asked.
AWAY = "away"
# Refusals after which one asks again.
LATER = frozenset({AWAY, "no_worker", "unavailable"})
AGAIN_SECONDS = 0.2
# Ten steps of the engine, so that answers grow.
WORDS = 40


@dataclass
class Seen:
    """What one client has seen of its answer.

    Attributes:
        prompt: What it asked.
        key: Its idempotency key: with one it asks again until it has an answer.
        job_id: The job that answers it, from the first event.
        texts: What came, each try anew.
        pieces: Events of the last try.
        end: ``done``, ``broken``, the code of an error event or of a refusal, or nothing yet.
    """

    prompt: str
    key: str | None = None
    job_id: int | None = None
    texts: list[str] = field(default_factory=list)
    pieces: int = 0
    end: str = ""


class StreamClients:
    """Clients on an event loop of their own; ``with`` runs it.

    Args:
        address: Of the server; it keeps its address when it is started again.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self.seen: list[Seen] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stream-clients")
        self._tasks: list[Any] = []
        self._http: httpx2.AsyncClient | None = None
        self._has_enough = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin(self, count: int, *, has_keys: bool = False, pause: float = 0.0) -> None:
        """Have so many clients read one answer after another until ``finish``.

        Args:
            count: How many.
            has_keys: Whether every other one names its requests by keys.
            pause: Seconds from an answer to the next request.
        """
        for number in range(count):
            going_on = self._go_on(has_key=has_keys and number % 2 == 1, pause=pause)
            self._tasks.append(asyncio.run_coroutine_threadsafe(going_on, self._loop))

    def finish(self, patience: float) -> None:
        """Wait until every client has the answer that it reads, and asks no more."""
        self._has_enough = True
        wait_until(
            lambda: all(task.done() for task in self._tasks), lambda: f"{self.ended} of {len(self.seen)} end", patience
        )
        for task in self._tasks:
            task.result()  # a fault of the test itself

    @property
    def ended(self) -> int:
        """Answers that nobody reads any more."""
        return sum(bool(one.end) for one in self.seen)

    @property
    def whole(self) -> int:
        """Answers that were read to their end."""
        return sum(one.end == DONE for one in self.seen)

    def wait_ended(self, count: int, patience: float) -> None:
        """Wait until so many more answers have ended."""
        wanted = self.ended + count
        wait_until(lambda: self.ended >= wanted, lambda: f"{self.ended} of {wanted} streams end", patience)

    async def _go_on(self, *, has_key: bool, pause: float) -> None:
        while not self._has_enough:
            number = len(self.seen)
            prompt = " ".join(f"s{number}-{n}" for n in range(WORDS))
            one = Seen(prompt, f"key-{number}" if has_key else None)
            self.seen.append(one)
            await self._read(one)
            await asyncio.sleep(pause)

    async def _read(self, one: Seen) -> None:
        while True:
            end = await self._try(one)
            may_ask_again = end in LATER and not one.pieces
            if not may_ask_again and (one.key is None or end in {DONE, "answer_changed"}):
                one.end = end
                return
            await asyncio.sleep(AGAIN_SECONDS)

    async def _try(self, one: Seen) -> str:
        if self._http is None:
            limits = httpx2.Limits(max_connections=None)
            self._http = httpx2.AsyncClient(base_url=self._address, timeout=600, limits=limits)
        body = {"prompt": one.prompt, "max_tokens": 256, "stream": True}
        headers = {} if one.key is None else {"Idempotency-Key": one.key}
        one.pieces = 0
        one.texts.append("")
        try:
            async with self._http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
                if answer.status_code != httpx2.codes.OK:
                    await answer.aread()
                    return str(answer.json()["error"]["code"])
                async for line in answer.aiter_lines():
                    if line.startswith("data: ") and (end := _take(one, line.removeprefix("data: "))):
                        return end
        except httpx2.ConnectError:
            return AWAY
        except httpx2.TransportError:
            return BROKEN
        return BROKEN

    async def _close(self) -> None:
        if self._http is not None:
            await self._http.aclose()


def _take(one: Seen, data: str) -> str:
    """Note an event; returns how the stream has ended, if it has."""
    if data == "[DONE]":
        return DONE
    event = json.loads(data)
    if "error" in event:
        return str(event["error"]["code"])
    one.job_id = int(event["id"].removeprefix("cmpl-"))
    one.pieces += 1
    one.texts[-1] += "".join(choice["text"] for choice in event["choices"])
    return ""


def single_requests(installation: Installation, allowed: frozenset[str] = frozenset()) -> list[Accepted]:
    """Every request that came over HTTP, for the oracle."""
    query = select(batches.c.id, jobs.c.request).join(jobs, jobs.c.batch_id == batches.c.id)
    with installation.read() as c:
        rows = c.execute(query.where(batches.c.interactive)).all()
    return [Accepted(row.id, (row.request["prompt"],), allowed=allowed) for row in rows]


def unfinished_requests(installation: Installation) -> int:
    """Requests over HTTP without a final state."""
    query = select(jobs.c.id).join(batches, jobs.c.batch_id == batches.c.id)
    with installation.read() as c:
        return len(c.execute(query.where(batches.c.interactive, jobs.c.finished_at.is_(None))).all())


def judge_streams(
    installation: Installation, seen: Sequence[Seen], *, may_end: Callable[[str], bool] = lambda _: False
) -> list[str]:
    """What does not hold of the streams: each is the stored answer, without a gap and with nothing twice.

    Args:
        installation: Whose tables have the answers.
        seen: What the clients saw.
        may_end: Whether a stream may end in this way beside ``done``.
    """
    with installation.read() as c:
        query = select(results.c.job_id, results.c.output_text).where(results.c.choice == 0)
        stored: dict[int, str] = {row.job_id: row.output_text for row in c.execute(query)}
    broken = []
    for number, one in enumerate(seen):
        answer = stored.get(one.job_id or 0)
        if one.end != DONE and not may_end(one.end):
            broken.append(f"stream {number} ended with {one.end!r}")
        if one.end == DONE and one.texts[-1] != answer:
            broken.append(f"stream {number} has {one.texts[-1]!r}, stored is {answer!r}")
        if answer is not None and not all(answer.startswith(text) for text in one.texts):
            broken.append(f"stream {number} has {one.texts!r}, which does not begin {answer!r}")
    asked_twice = len({one.job_id for one in seen if one.job_id}) != sum(one.job_id is not None for one in seen)
    if asked_twice:
        broken.append("two clients have one job's answer")
    return [*broken[:MAX_REPORTED], f"and {len(broken) - MAX_REPORTED} more"] if len(broken) > MAX_REPORTED else broken
