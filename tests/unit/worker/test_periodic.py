from __future__ import annotations

import errno
import queue
import threading

import pytest

from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.observability.rounds import Rounds
from helix_jobs.worker.periodic import Periodic, shortened

# Longer than any test: a call that comes all the same was not waited for.
AN_AGE = 3600.0


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 10.0), (0.5, 9.0), (1.0, 8.0)])
def test_chance_shortens_a_pause_and_never_lengthens_it(chance: float, pause: float) -> None:
    assert shortened(10.0, jitter=0.2, chance=chance) == pause


def test_it_goes_on_whatever_a_call_raises(caplog: pytest.LogCaptureFixture) -> None:
    errors = [BrokerUnreachableError("away"), ValueError("a bug")]
    done = threading.Event()

    def duty() -> None:
        if errors:
            raise errors.pop(0)
        done.set()

    periodic = Periodic("duty", duty, 0.001)
    periodic.start()
    assert done.wait(20)
    periodic.stop(20)
    assert "duty: away; trying again" in caplog.text
    assert "unexpected error" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokerUnreachableError("away"), "duty: away; trying again"),
        (OSError(errno.EMFILE, "Too many open files"), "LimitNOFILE"),
        (ValueError("a bug"), "duty: unexpected error (ValueError), trying again"),
    ],
    ids=repr,
)
def test_a_trouble_that_lasts_is_told_once_and_its_end_too(
    caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    caplog.set_level("INFO", logger="helix_jobs")
    calls = iter([error] * 5 + [None] * 3 + [error] * 5)
    done = threading.Event()

    def duty() -> None:
        try:
            now = next(calls)
        except StopIteration:
            done.set()
            return
        if now is not None:
            raise now

    periodic = Periodic("duty", duty, 0.001)
    periodic.start()
    assert done.wait(20)
    periodic.stop(20)
    texts = [record.getMessage() for record in caplog.records]
    over = "duty: it works again"
    assert [said in text or text == over for text in texts] == [True] * 4
    assert [text == over for text in texts] == [False, True, False, True]
    assert ("Traceback" in caplog.text) is isinstance(error, ValueError)


def test_nobody_waits_for_a_call_that_hangs() -> None:
    begun, released = threading.Event(), threading.Event()

    def duty() -> None:
        begun.set()
        released.wait(60)

    periodic = Periodic("duty", duty, 0.001)
    periodic.start()
    assert begun.wait(20)
    periodic.stop(0.0)
    released.set()
    periodic.stop(20)


def test_the_first_call_may_come_at_once_and_the_next_one_when_it_is_woken() -> None:
    calls: queue.SimpleQueue[int] = queue.SimpleQueue()
    periodic = Periodic("duty", lambda: calls.put(1), AN_AGE, at_once=True)
    periodic.start()
    for _ in range(3):
        assert calls.get(timeout=20)
        periodic.wake()
    assert periodic.stop(20)


def test_one_that_waits_for_its_time_is_stopped_without_a_call() -> None:
    calls: list[int] = []
    periodic = Periodic("duty", lambda: calls.append(1), AN_AGE)
    periodic.start()
    assert not periodic.is_stopped
    assert periodic.stop(20)
    assert periodic.is_stopped
    assert calls == []


def test_it_notes_each_round_and_does_something_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="helix_jobs")
    rounds, counts, ends, ended = Rounds(), [], [], threading.Event()

    def at_end() -> None:
        ends.append(list(rounds.counts()))
        ended.set()

    def duty() -> None:
        counts.append(rounds.counts()["duty"])
        if len(counts) == 3:
            periodic.cease()
        else:
            raise BrokerUnreachableError("away")

    periodic = Periodic("duty", duty, 0.001, rounds=rounds, at_end=at_end)
    periodic.start()
    assert ended.wait(20)
    assert periodic.stop(20)
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
    assert ends == [["duty"]], "its end is watched, too"
    assert rounds.counts() == {}
    assert "works again" not in caplog.text, "it ended itself"
