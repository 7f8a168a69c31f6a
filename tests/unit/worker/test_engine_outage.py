"""Jobs wait while the engine takes none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helix_jobs.worker.engine_outage import EngineOutage, Wait
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: dict[float, Callable[[], object]] = {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [moment for moment in self.at if moment <= self.now]:
            self.at.pop(moment)()


def test_without_an_outage_nobody_waits() -> None:
    clock = Clock()
    assert EngineOutage(lambda: None, clock=clock, sleep=clock.sleep).wait(lambda: False) is Wait.OVER
    assert clock.now == 0.0


def test_a_job_waits_for_the_end_of_an_outage_as_long_as_its_patience() -> None:
    clock = Clock()
    outages: list[str] = ["the server is lost"]
    outage = EngineOutage(lambda: outages[0] if outages else None, 60.0, clock, clock.sleep)
    assert outage.lasts
    assert outage.wait(lambda: False) is Wait.IN_VAIN
    assert clock.now == 60.0
    clock.at[90.0] = outages.clear
    assert outage.wait(lambda: False) is Wait.OVER
    assert clock.now == 90.0


def test_a_stopping_worker_does_not_wait() -> None:
    clock = Clock()
    outage = EngineOutage(lambda: "lost", 60.0, clock, clock.sleep)
    assert outage.wait(lambda: clock.now >= 5.0) is Wait.STOPPED
    assert clock.now == 5.0


def test_a_job_is_not_claimed_while_the_engine_takes_none(make_bench: Any) -> None:
    bench = make_bench()
    (job,) = bench.add("a b c")
    bench.engine.outage = "the server is lost"
    (future,) = bench.run(job)
    wait_until(lambda: bench.service.active_count == 1, "it is not taken")
    assert (bench.service.idle_slots, bench.service.stuck) == (0, 0)
    assert (bench.rows()[job].state, bench.rows()[job].attempts) == ("queued", 0)
    bench.engine.outage = None
    assert future.result(20)
    assert (bench.rows()[job].state, bench.rows()[job].attempts) == ("succeeded", 1)


def test_a_waiting_job_goes_to_another_worker_when_this_one_stops(make_bench: Any) -> None:
    bench = make_bench()
    (job,) = bench.add("a b c")
    bench.engine.outage = "the server is lost"
    (future,) = bench.run(job)
    wait_until(lambda: bench.service.active_count == 1, "it is not taken")
    bench.service.begin_drain()
    assert future.result(20) is False
    assert bench.rows()[job].attempts == 0
