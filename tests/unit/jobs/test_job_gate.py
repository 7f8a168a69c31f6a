from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from helix_jobs.jobs.job_gate import JobGate


def test_jobs_run_side_by_side() -> None:
    gate = JobGate()
    assert [gate.enter(alone=False) for _ in range(5)] == [True] * 5


def test_one_alone_waits_for_the_others_and_goes_before_those_that_come_later() -> None:
    gate = JobGate()
    order: list[str] = []

    def run(name: str, *, alone: bool) -> None:
        assert gate.enter(alone=alone)
        order.append(name)
        gate.leave()

    gate.enter(alone=False)
    with ThreadPoolExecutor(4) as pool:
        lone = pool.submit(run, "alone", alone=True)
        while gate._waiting_alone == 0:
            time.sleep(0.001)
        later = [pool.submit(run, "later", alone=False) for _ in range(2)]
        time.sleep(0.02)
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
        assert gate.enter(alone=alone)
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
        assert waiting.result(20) is False
    assert gate.enter(alone=False) is False
    gate.leave()
    gate.reopen()
    assert gate.enter(alone=True) is True
