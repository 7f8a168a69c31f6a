"""The dead man's switch: what it does about loops that do not come round, and when it keeps still."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, suppress

import pytest

from helix_jobs.jobs.dead_man import (
    CLOSE_SECONDS,
    END_SECONDS,
    DeadMansSwitch,
    Limit,
    Silence,
    observe,
    say,
    where_threads_stand,
)
from helix_jobs.jobs.rounds import Rounds


class Calls:
    """Counts how often overdue calls were to be closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close_overdue(self, seconds: float) -> int:
        assert seconds == CLOSE_SECONDS
        self.closed += 1
        return 0


class Bench:
    """A switch whose clock is turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rounds = Rounds()
        self.calls = Calls()
        self.ended: list[str] = []
        self.hung: list[str] = []
        self.switch = DeadMansSwitch(
            self.rounds,
            [self.calls],  # type: ignore[list-item]
            limit=Limit(END_SECONDS, self.ended.append),
            limits={"engine": Limit(900.0, self.hung.append)},
            clock=lambda: self.now,
        )

    def pass_by(self, seconds: float, *, looks: int) -> None:
        for _ in range(looks):
            self.now += seconds / looks
            self.switch.look()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_loops_that_come_round_are_left_alone(bench: Bench) -> None:
    with bench.rounds.watched("writer") as came_round:
        for _ in range(40):
            bench.pass_by(30.0, looks=30)
            came_round()
    assert bench.ended == []


def test_a_loop_that_is_silent_for_two_minutes_ends_the_process(bench: Bench) -> None:
    with bench.rounds.watched("writer"), bench.rounds.watched("heartbeat") as came_round:
        for _ in range(12):
            bench.pass_by(10.0, looks=10)
            came_round()
        assert bench.ended == []
        bench.pass_by(2.0, looks=2)
    assert bench.ended == ["the writer has not come round for 120 s"]


def test_calls_are_closed_a_minute_before_that(bench: Bench) -> None:
    bench.pass_by(59.0, looks=59)
    assert bench.calls.closed == 0
    bench.pass_by(3.0, looks=3)
    assert bench.calls.closed > 0


def test_an_engine_step_may_take_longer(bench: Bench) -> None:
    with bench.rounds.watched("engine"):
        bench.pass_by(899.0, looks=899)
        assert (bench.ended, bench.hung) == ([], [])
        bench.pass_by(3.0, looks=3)
    assert bench.ended == []
    assert len(bench.hung) == 1


def test_time_in_which_the_whole_process_stood_still_does_not_count(bench: Bench) -> None:
    """SIGSTOP, a suspended machine: everything was silent, and nobody is to blame."""
    with bench.rounds.watched("writer"), bench.rounds.watched("engine"):
        bench.pass_by(50.0, looks=50)
        bench.pass_by(3600.0, looks=1)
        bench.pass_by(50.0, looks=50)
        assert (bench.ended, bench.hung) == ([], [])
        assert bench.calls.closed == 0, "a call that was out before gets its time to be answered"


def test_a_loop_that_ended_in_order_is_not_missed_and_one_that_broke_is(bench: Bench) -> None:
    with bench.rounds.watched("reconciler"):
        pass
    bench.pass_by(300.0, looks=300)
    assert bench.ended == []
    with suppress(MemoryError), bench.rounds.watched("writer"):
        raise MemoryError
    bench.pass_by(122.0, looks=122)
    assert len(bench.ended) == 1


def test_silence_is_of_one_round() -> None:
    first = observe({}, {"a": 1, "b": 1}, 1.0)
    second = observe(first, {"a": 1, "b": 2, "c": 1}, 1.0)
    assert second == {"a": Silence(1, 1.0), "b": Silence(2), "c": Silence(1)}
    assert observe(second, {"a": 1}, 2.0) == {"a": Silence(1, 3.0)}


def test_a_log_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("helix_jobs.jobs.dead_man.SAY_SECONDS", 0.05)
    say("heard")
    assert "heard" in caplog.text
    with ExitStack() as stack:
        handler = logging.getLogger().handlers[0]
        handler.acquire()
        stack.callback(handler.release)
        say("not heard")


def test_where_threads_stand_names_them_and_shows_no_value() -> None:
    begun, ended = threading.Event(), threading.Event()

    def wait_for_good(prompt: str) -> None:
        begun.set()
        ended.wait(60)
        assert prompt

    thread = threading.Thread(target=wait_for_good, args=("the prompt's text",), name="helix-writer")
    thread.start()
    assert begun.wait(20)
    found = where_threads_stand()
    ended.set()
    thread.join()
    (line,) = [line for line in found.splitlines() if line.startswith("helix-writer")]
    assert "wait_for_good (test_dead_man.py:" in line
    assert "the prompt" not in found
