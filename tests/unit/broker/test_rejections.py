from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest

from helix_jobs.broker.celery.rejections import Rejections

if TYPE_CHECKING:
    from collections.abc import Callable


class Minute(threading.Timer):
    """A timer whose time is over when the test says so."""

    def __init__(self, interval: float, function: Callable[[], None]) -> None:
        super().__init__(interval, function)
        self._over = threading.Event()

    def run(self) -> None:
        self._over.wait(60)
        if not self.finished.is_set():
            self.function()

    def cancel(self) -> None:
        super().cancel()
        self._over.set()

    def pass_by(self) -> None:
        self._over.set()
        self.join(20)
        assert not self.is_alive()


@pytest.fixture
def counted() -> list[int]:
    return []


def minutes_of(rejections: Rejections) -> list[Minute]:
    """The timers at whose end it says what came; one at most."""
    timers = [thread for thread in threading.enumerate() if isinstance(thread, Minute)]
    return [timer for timer in timers if getattr(timer.function, "__self__", None) is rejections]


def test_the_first_is_said_at_once_and_the_rest_together(counted: list[int], caplog: pytest.LogCaptureFixture) -> None:
    rejections = Rejections(counted.append)
    with caplog.at_level(logging.WARNING):
        rejections.note("none of ours")
        for _ in range(1000):
            rejections.note("none of ours", 3)
        rejections.note("no message")
        assert [record.message for record in caplog.records] == [
            "dropped 1 message that no worker takes from the broker: 1 none of ours"
        ]
        rejections.close()
    assert caplog.records[1].message == (
        "dropped 3,001 messages that no worker takes from the broker: 3,000 none of ours, 1 no message"
    )
    assert sum(counted) == 3002
    rejections.close()
    assert len(caplog.records) == 2, "nothing is said twice"


def test_each_minute_says_what_came_in_it(
    counted: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "Timer", Minute)
    rejections = Rejections(counted.append, interval=7.0)
    with caplog.at_level(logging.WARNING):
        rejections.note("a")
        rejections.note("b")
        (first,) = minutes_of(rejections)
        first.pass_by()
        (second,) = minutes_of(rejections)  # b was said, and another minute began
        assert second is not first
        assert first.interval == second.interval == 7.0
        second.pass_by()
        assert not minutes_of(rejections), "nothing came in it"
        rejections.note("c")
        rejections.close()
    assert [record.message[-3:] for record in caplog.records] == ["1 a", "1 b", "1 c"]


def test_without_a_thread_for_the_minute_nothing_ends_and_later_ones_are_said(
    counted: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever notes a rejection is Celery's loop, which must not end for it."""

    def refuse(_timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    rejections = Rejections(counted.append)
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(threading.Timer, "start", refuse)
        rejections.note("a")
    rejections.note("b")
    rejections.close()
    assert [record.message[-3:] for record in caplog.records] == ["1 a", "1 b"]
