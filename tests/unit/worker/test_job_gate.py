from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from helix_jobs.worker.gate import PAUSE_FACTOR, Entry, JobGate
from tests.unit.worker.service_bench import FakeTime
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def threads(gate: JobGate) -> Iterator[ThreadPoolExecutor]:
    """Threads that wait at a gate; a failing test leaves none of them there."""
    with ThreadPoolExecutor(8) as pool:
        try:
            yield pool
        finally:
            gate.close()


def test_jobs_run_side_by_side() -> None:
    gate = JobGate()
    assert [gate.enter(alone=False) for _ in range(5)] == [Entry.ENTERED] * 5


def test_one_alone_waits_for_the_others_and_goes_before_those_that_come_later() -> None:
    clock = FakeTime()
    gate = JobGate(10.0, clock, clock.wait)
    order: list[str] = []

    def run(name: str, *, alone: bool) -> None:
        assert gate.enter(alone=alone) is Entry.ENTERED
        order.append(name)
        gate.leave()

    gate.enter(alone=False)
    with threads(gate) as pool:
        lone = pool.submit(run, "alone", alone=True)
        wait_until(lambda: clock.waiting == 1, "it does not wait")
        later = [pool.submit(run, "later", alone=False) for _ in range(2)]
        wait_until(lambda: clock.waiting == 3, "they do not wait")
        assert order == []
        gate.leave()
        for future in (lone, *later):
            future.result(20)
    assert order == ["alone", "later", "later"]


def test_whatever_happens_nobody_runs_beside_one_alone() -> None:
    gate = JobGate()
    inside: list[bool] = []
    worst: list[int] = []
    lock = threading.Lock()

    def run(number: int) -> None:
        alone = number % 3 == 0
        assert gate.enter(alone=alone) is Entry.ENTERED
        with lock:
            inside.append(alone)
            worst.append(len(inside) if any(inside) else 1)
        time.sleep(0.0005)
        with lock:
            inside.remove(alone)
        gate.leave()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(run, range(300)))
    assert set(worst) == {1}


def test_a_closed_gate_sends_everybody_away_until_it_opens_again() -> None:
    gate = JobGate()
    gate.enter(alone=False)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gate.enter, alone=True)
        gate.close()
        assert waiting.result(20) is Entry.CLOSED
    assert gate.enter(alone=False) is Entry.CLOSED
    gate.leave()
    gate.reopen()
    assert gate.enter(alone=True) is Entry.ENTERED


@pytest.mark.parametrize("num_alone", [1, 2, 5])
def test_one_alone_waits_for_a_job_that_does_not_end_only_for_so_long(num_alone: int) -> None:
    # Who wakes first when the patience is over is chance: each order has its turn.
    for _ in range(10):
        clock = FakeTime()
        gate = JobGate(10.0, clock, clock.wait)
        gate.enter(alone=False)
        with threads(gate) as pool:
            lone = [pool.submit(gate.enter, alone=True) for _ in range(num_alone)]
            wait_until(lambda clock=clock: clock.waiting == num_alone, "they do not wait")
            other = pool.submit(gate.enter, alone=False)
            wait_until(lambda clock=clock: clock.waiting == num_alone + 1, "the other one does not wait")
            clock.advance(9.0)
            assert not any(one.done() for one in lone)
            clock.advance(1.0)
            assert [one.result(20) for one in lone] == [Entry.TRY_LATER] * num_alone
            assert other.result(20) is Entry.ENTERED


def test_others_have_the_worker_for_a_while_after_a_wait_in_vain() -> None:
    clock = FakeTime()
    gate = JobGate(10.0, clock, clock.wait)
    gate.enter(alone=False)
    with threads(gate) as pool:
        lone = pool.submit(gate.enter, alone=True)
        wait_until(lambda: clock.waiting == 1, "it does not wait")
        clock.advance(10.0)
        assert lone.result(20) is Entry.TRY_LATER
        assert gate.enter(alone=True) is Entry.TRY_LATER
        clock.advance(10.0 * PAUSE_FACTOR)
        gate.leave()
        assert gate.enter(alone=True) is Entry.ENTERED


def test_whoever_waited_for_one_alone_is_let_in_when_that_one_does_not_end() -> None:
    clock = FakeTime()
    gate = JobGate(10.0, clock, clock.wait)
    gate.enter(alone=False)
    with threads(gate) as pool:
        lone = pool.submit(gate.enter, alone=True)
        wait_until(lambda: clock.waiting == 1, "it does not wait")
        others = [pool.submit(gate.enter, alone=False) for _ in range(3)]
        wait_until(lambda: clock.waiting == 4, "they do not wait")
        gate.leave()
        assert lone.result(20) is Entry.ENTERED
        clock.advance(9.0)
        assert clock.waiting == 3
        clock.advance(1.0)
        assert [other.result(20) for other in others] == [Entry.ENTERED] * 3


def test_each_time_it_waits_in_vain_it_is_more_patient_and_others_have_longer() -> None:
    clock = FakeTime()
    gate = JobGate(10.0, clock, clock.wait)
    gate.enter(alone=False)
    with threads(gate) as pool:
        for patience in (10.0, 20.0, 40.0):
            lone = pool.submit(gate.enter, alone=True)
            wait_until(lambda: clock.waiting == 1, "it does not wait")
            clock.advance(patience - 1.0)
            assert clock.waiting == 1
            clock.advance(1.0)
            assert lone.result(20) is Entry.TRY_LATER
            assert gate.seconds_for_others == PAUSE_FACTOR * patience
            clock.advance(PAUSE_FACTOR * patience)
    gate.reopen()
    gate.leave()
    assert gate.enter(alone=True) is Entry.ENTERED


def test_one_alone_that_does_not_end_lets_others_in_after_a_while() -> None:
    clock = FakeTime()
    gate = JobGate(10.0, clock, clock.wait)
    assert gate.enter(alone=True) is Entry.ENTERED
    with threads(gate) as pool:
        other = pool.submit(gate.enter, alone=False)
        wait_until(lambda: clock.waiting == 1, "it does not wait")
        clock.advance(9.0)
        assert clock.waiting == 1
        clock.advance(1.0)
        assert other.result(20) is Entry.ENTERED
