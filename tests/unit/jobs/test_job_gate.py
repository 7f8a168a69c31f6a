from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from worker_box import wait_until

from helix_jobs.jobs.job_gate import PAUSE_FACTOR, Entry, JobGate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_jobs_run_side_by_side() -> None:
    gate = JobGate()
    assert [gate.enter(alone=False) for _ in range(5)] == [Entry.ENTERED] * 5


def test_one_alone_waits_for_the_others_and_goes_before_those_that_come_later() -> None:
    gate = JobGate()
    order: list[str] = []

    def run(name: str, *, alone: bool) -> None:
        assert gate.enter(alone=alone) is Entry.ENTERED
        order.append(name)
        gate.leave()

    gate.enter(alone=False)
    with ThreadPoolExecutor(4) as pool:
        lone = pool.submit(run, "alone", alone=True)
        wait_until(lambda: gate.waiting_alone, "it does not wait")
        later = [pool.submit(run, "later", alone=False) for _ in range(2)]
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


def test_one_alone_waits_for_a_job_that_does_not_end_only_for_so_long() -> None:
    gate = JobGate(patience=0.1)
    gate.enter(alone=False)
    with ThreadPoolExecutor(4) as pool:
        lone = [pool.submit(gate.enter, alone=True) for _ in range(2)]
        other = pool.submit(gate.enter, alone=False)
        assert [one.result(20) for one in lone] == [Entry.TRY_LATER] * 2
        assert other.result(20) is Entry.ENTERED
    assert gate.enter(alone=True) is Entry.TRY_LATER, "others have the worker for a while"


def test_each_time_it_waits_in_vain_it_is_more_patient_and_others_have_longer() -> None:
    clock = Clock()
    gate = JobGate(patience=0.01, clock=clock)
    gate.enter(alone=False)
    pauses = []
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            lone = pool.submit(gate.enter, alone=True)
            while not lone.done():
                clock.now += 0.001
                time.sleep(0.0001)
            assert lone.result() is Entry.TRY_LATER
        pauses.append(gate.seconds_for_others)
        clock.now += pauses[-1]
    assert [round(pause / PAUSE_FACTOR, 2) for pause in pauses] == [0.01, 0.02, 0.04]
    gate.leave()
    assert gate.enter(alone=True) is Entry.ENTERED


def test_one_alone_that_does_not_end_lets_others_in_after_a_while() -> None:
    gate = JobGate(patience=0.1)
    assert gate.enter(alone=True) is Entry.ENTERED
    assert gate.enter(alone=False) is Entry.ENTERED
