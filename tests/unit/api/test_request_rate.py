"""How many requests a key may send in a minute: the bucket, and what the server says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.api.problems import Problem
from helix_jobs.api.request_rate import Paced, RequestRate

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_s_requests_may_come_at_once_and_then_one_by_one() -> None:
    clock = Clock()
    rate = RequestRate(30, clock)
    assert [rate.take("a").remaining for _ in range(30)] == list(range(29, -1, -1))
    with pytest.raises(Problem, match="may send 30 requests a minute") as refused:
        rate.take("a")
    assert (refused.value.status, refused.value.retry_after) == (429, 2)
    clock.now += 2
    assert rate.take("a").remaining == 0
    with pytest.raises(Problem):
        rate.take("a")
    clock.now += 3600
    standing = rate.take("a")
    assert (standing.remaining, standing.reset_seconds) == (29, pytest.approx(2))


def test_each_key_has_a_bucket_of_its_own() -> None:
    rate = RequestRate(1, Clock())
    rate.take("a")
    rate.take("b")
    with pytest.raises(Problem):
        rate.take("a")


@given(
    per_minute=st.integers(1, 1_000_000),
    gaps=st.lists(st.floats(0, 90), max_size=60),
    start=st.floats(0, 1e9),
)
def test_whoever_waits_as_long_as_it_is_told_is_served(per_minute: int, gaps: list[float], start: float) -> None:
    """And in no minute are more served than the bucket and what runs into it."""
    clock = Clock()
    clock.now = start
    rate = RequestRate(per_minute, clock)
    served = 0
    for gap in gaps:
        clock.now += gap
        try:
            assert 0 <= rate.take("a").remaining < per_minute
        except Problem as problem:
            clock.now += problem.retry_after or 0
            rate.take("a")
        served += 1
    assert served <= per_minute + (clock.now - start) * per_minute / 60 + 1


def ask(paced: Paced, method: str = "POST", owner: str = "a") -> dict[bytes, bytes]:
    """The headers of the answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    scope: dict[str, Any] = {"type": "http", "method": method, "state": {"owner": owner}}
    asyncio.run(paced(scope, receive, send))
    return dict(sent[0]["headers"])


async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_only_what_makes_work_is_counted_and_the_answer_tells_what_is_left() -> None:
    paced = Paced(answer, RequestRate(2, Clock()))
    for _ in range(5):
        assert ask(paced, "GET") == {}
        assert ask(paced, owner="") == {}, "nobody has signed in yet"
    assert ask(paced) == {
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"1",
        b"x-ratelimit-reset-requests": b"30.00s",
    }
    ask(paced)
    with pytest.raises(Problem):
        ask(paced, "DELETE")
