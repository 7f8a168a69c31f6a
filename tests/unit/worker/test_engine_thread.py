from __future__ import annotations

import errno
import queue
import threading
import time
from typing import TYPE_CHECKING

import pytest

from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.engine.fake_faults import FakeFaults
from helix_jobs.engine.request import FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import EngineBrokenError, ExhaustedError, InvalidRequestError
from helix_jobs.observability.rounds import Rounds
from helix_jobs.worker import engine_thread
from helix_jobs.worker.engine_run import Generated, RequestFailed, Run
from helix_jobs.worker.engine_thread import LOOP, EngineThread
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.engine.protocol import EngineCounters
    from helix_jobs.forecast.step_costs import StepCosts


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.began = 0
        self.ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.costs: queue.SimpleQueue[StepCosts] = queue.SimpleQueue()

    def begin(self, counters: EngineCounters) -> Run:
        self.began += 1
        return Run(counters, time.monotonic())

    def end(self, run: Run, counters: EngineCounters, *, jobs_finished: int, idle_seconds: float) -> None:  # noqa: ARG002
        self.costs.put(run.costs)
        self.ended.put(jobs_finished)


class Bench:
    """An engine thread and what came out of it."""

    def __init__(self, engine: FakeEngine, **options: float) -> None:
        self.engine = engine
        self.recorder = Recorder()
        self.broken: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.endings: queue.SimpleQueue[tuple[str, Generated | RequestFailed]] = queue.SimpleQueue()
        self.rounds = Rounds()
        self.thread = EngineThread(engine, self.recorder, self.broken.put, rounds=self.rounds, **options)

    def submit(self, name: str, prompt: str = "a b c", n: int = 1) -> None:
        request = Request(request_id=name, prompt=prompt, sampling_params=SamplingParams(n=n), seed=0)
        self.thread.submit(self.engine.encode(request), lambda ending: self.endings.put((name, ending)))

    def collect(self, count: int) -> dict[str, Generated | RequestFailed]:
        return dict(self.endings.get(timeout=20) for _ in range(count))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(FakeEngine(max_batch_size=4, faults=FakeFaults(hang="endless", crash="boom", stall="stuck")))
    yield bench
    bench.engine.close()
    assert bench.thread.stop(20)


def test_a_thread_that_was_never_started_is_stopped() -> None:
    """Where a worker's start fails halfway, what it has not begun is undone too."""
    assert Bench(FakeEngine()).thread.stop(20)


def test_a_run_tells_what_its_steps_took(bench: Bench) -> None:
    for number in range(8):
        bench.submit(f"job {number}")
    bench.thread.start()
    bench.collect(8)
    costs = bench.recorder.costs.get(timeout=20)
    steps = [one for kind in (costs.decoding, costs.mixed) for one in kind.values()]
    assert sum(one.steps for one in steps) == bench.engine.counters().steps
    assert sum(one.tokens for one in steps) == bench.engine.counters().completion_tokens
    assert costs.seconds > 0


def test_the_first_run_is_short_and_the_next_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forecast of the first batch needs what steps cost before a minute is over."""
    monkeypatch.setattr(engine_thread, "FIRST_RUN_SECONDS", 0.05)
    bench = Bench(FakeEngine(max_batch_size=1, step_seconds=0.02))
    for number in range(30):
        bench.submit(f"job {number}")
    bench.thread.start()
    bench.collect(30)
    first, second = (bench.recorder.ended.get(timeout=20) for _ in range(2))
    assert 0 < first < second
    assert first + second == 30
    bench.engine.close()
    assert bench.thread.stop(20)


def test_requests_added_before_and_while_it_runs_all_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stepping, submitted = threading.Event(), threading.Event()

    def sleep(_seconds: float) -> None:
        stepping.set()
        submitted.wait(20)

    monkeypatch.setattr(bench.engine, "_sleep", sleep)
    for number in range(10):
        bench.submit(f"early {number}")
    bench.thread.start()
    assert stepping.wait(20)
    for number in range(10):
        bench.submit(f"late {number}")
    submitted.set()
    endings = bench.collect(20)
    assert all(isinstance(e, Generated) and e.result.finish_reason is FinishReason.STOP for e in endings.values())
    assert bench.recorder.ended.get(timeout=20) == 20, "one run, as the engine was never idle"
    assert bench.recorder.began == 1


def test_an_abort_reaches_a_running_request(bench: Bench) -> None:
    bench.thread.start()
    bench.submit("x", "endless")
    bench.submit("y")
    assert bench.collect(1).keys() == {"y"}
    bench.thread.abort("x")
    bench.thread.abort("unknown")
    ending = bench.collect(1)["x"]
    assert isinstance(ending, Generated)
    assert ending.result.finish_reason is FinishReason.ABORTED


def test_a_request_for_several_choices_ends_once_and_takes_a_slot_for_each(bench: Bench) -> None:
    bench.submit("x", "endless", n=3)
    bench.submit("y", n=2)
    bench.thread.start()
    assert len(bench.collect(1)["y"].result.choices) == 2
    assert (bench.thread.request_count, bench.thread.choice_count) == (1, 3)
    bench.thread.abort("x")
    assert bench.collect(1)["x"].result.finish_reason is FinishReason.ABORTED
    bench.submit("boom", "boom", n=5)
    assert isinstance(bench.collect(1)["boom"], RequestFailed)
    assert (bench.thread.request_count, bench.thread.choice_count) == (0, 0)
    assert bench.endings.empty()
    assert bench.recorder.ended.get(timeout=20) == 1, "jobs, not choices"


def test_a_failing_step_fails_what_is_inside_and_goes_on(bench: Bench) -> None:
    bench.submit("bad", "boom")
    bench.submit("neighbour", "endless")
    bench.thread.start()
    endings = bench.collect(2)
    assert {name: ending.error.code for name, ending in endings.items() if isinstance(ending, RequestFailed)} == {
        "bad": "engine_error",
        "neighbour": "engine_error",
    }
    bench.submit("good")
    assert isinstance(bench.collect(1)["good"], Generated)
    assert bench.broken.empty()


def test_three_failing_steps_in_a_row_end_it(bench: Bench) -> None:
    bench.thread.start()
    for number in (1, 2):
        bench.submit(f"bad {number}", "boom")
        bench.collect(1)
    bench.submit("bad 3", "boom")
    assert isinstance(bench.broken.get(timeout=20), EngineBrokenError)
    assert bench.endings.empty(), "the last ones are left to be reclaimed"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
@pytest.mark.parametrize("call", ["step", "add_request"])
def test_an_exhausted_machine_fails_no_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "the prompt's text")

    monkeypatch.setattr(bench.engine, call, refuse)
    bench.submit("x")
    bench.submit("y")
    bench.thread.start()
    error = bench.broken.get(timeout=20)
    assert isinstance(error, ExhaustedError)
    assert "limit" in str(error) or "fs.file-max" in str(error)
    assert "the prompt's text" not in str(error)
    assert bench.endings.empty(), "both are left to be handed back"


@pytest.mark.parametrize("call", ["step", "add_request"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [(RuntimeError("can't start new thread"), ExhaustedError), (MemoryError("the prompt's text"), EngineBrokenError)],
    ids=["threads", "memory"],
)
def test_without_threads_or_memory_no_request_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception, kind: type[Exception]
) -> None:
    """Where memory is missing, attempts count: a job that alone causes it is found when it runs alone."""

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(bench.engine, call, refuse)
    bench.submit("x")
    bench.submit("y")
    bench.thread.start()
    broken = bench.broken.get(timeout=20)
    assert type(broken) is kind
    assert "limit" in str(broken)
    assert "the prompt's text" not in str(broken)
    assert bench.endings.empty()


def test_another_system_error_is_the_step_s_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EIO, "a disk")

    monkeypatch.setattr(bench.engine, "step", refuse)
    bench.submit("x")
    bench.thread.start()
    assert isinstance(bench.collect(1)["x"], RequestFailed)


def test_progress_between_failures_forgives_them(bench: Bench) -> None:
    bench.thread.start()
    for number in range(5):
        bench.submit(f"bad {number}", "boom")
        bench.collect(1)
        bench.submit(f"good {number}")
        bench.collect(1)
    assert bench.broken.empty()


def test_a_refused_request_fails_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Request) -> None:
        raise InvalidRequestError("no") if request.request_id == "known" else ValueError("the prompt's text")

    monkeypatch.setattr(bench.engine, "add_request", refuse)
    bench.thread.start()
    bench.submit("known")
    bench.submit("unknown")
    endings = bench.collect(2)
    codes = {name: ending.error.code for name, ending in endings.items() if isinstance(ending, RequestFailed)}
    assert codes == {"known": "invalid_request", "unknown": "engine_error"}
    assert "the prompt's text" not in str(endings["unknown"])


def test_a_hanging_step_is_seen_and_does_not_hang_the_stop(bench: Bench) -> None:
    bench.thread.start()
    bench.submit("x", "stuck")
    wait_until(lambda: bench.rounds.counts()[LOOP] > 1, "no round")
    seen = bench.rounds.counts()
    assert not bench.thread.stop(0.05)
    assert bench.rounds.counts() == seen, "it does not come round in a step"


def test_a_request_past_its_deadline_fails_alone() -> None:
    engine = FakeEngine(max_batch_size=2, step_seconds=0.01, faults=FakeFaults(hang="endless"))
    bench = Bench(engine, job_timeout=0.2)
    bench.thread.start()
    for number in range(6):
        bench.submit(f"bad {number}", "endless")
        bench.submit(f"good {number}")
    endings = bench.collect(12)
    assert {
        name: ending.error.code if isinstance(ending, RequestFailed) else ending.result.finish_reason
        for name, ending in endings.items()
    } == {f"{kind} {n}": end for n in range(6) for kind, end in (("bad", "deadline"), ("good", FinishReason.STOP))}
    assert "HELIX_JOB_TIMEOUT" in str(endings["bad 0"])
    # What was aborted comes out of the engine a step after its end is told.
    wait_until(lambda: not bench.thread._ran, "it keeps the time of a request that has ended")
    assert bench.thread.stop(20)
    assert bench.thread._ran == {}


def test_waiting_for_a_slot_is_not_running() -> None:
    """Eight requests of two seconds' worth of steps on one slot: the last waits ten times as long as it may run."""
    clock = SteppedClock()
    engine = FakeEngine(max_batch_size=1, depth=0, step_seconds=1.0, sleep=clock.sleep)
    bench = Bench(engine, job_timeout=3.5)
    for number in range(8):
        bench.submit(f"x {number}", "a b c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helix_jobs.worker.engine_thread.time", clock)
        bench.thread.start()
        endings = bench.collect(8)
        assert all(isinstance(ending, Generated) for ending in endings.values())
        bench.submit("long", "a b c d e")
        (ending,) = bench.collect(1).values()
        assert isinstance(ending, RequestFailed)
        assert bench.thread.stop(20)


def test_a_standstill_is_nobodys_running_time() -> None:
    clock = SteppedClock(pauses=[1.0, 500.0, 1.0])
    engine = FakeEngine(max_batch_size=1, depth=0, step_seconds=1.0, sleep=clock.sleep)
    bench = Bench(engine, job_timeout=60)
    bench.submit("x", "a b c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helix_jobs.worker.engine_thread.time", clock)
        bench.thread.start()
        assert isinstance(bench.collect(1)["x"], Generated)
        assert bench.thread.stop(20)


class SteppedClock:
    """Monotonic time that passes while an engine sleeps, and only then."""

    def __init__(self, pauses: list[float] | None = None) -> None:
        self.now = 0.0
        self.pauses = pauses or []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += self.pauses.pop(0) if self.pauses else seconds


def test_an_engine_that_is_cleared_serves_another_thread(bench: Bench) -> None:
    """What was handed back is gone from it, and what it is asked next is answered."""
    bench.thread.start()
    for name in ("endless one", "endless two"):
        bench.submit(name, "endless story")
    wait_until(lambda: bench.thread.request_count == 2, "they are not in the engine")
    assert bench.thread.stop(20)
    assert bench.engine.has_unfinished()
    assert bench.thread.clear()
    assert not bench.engine.has_unfinished()
    assert bench.thread.request_count == 0
    assert bench.endings.empty(), "nobody waits for them"
    second = Bench(bench.engine)
    second.thread.start()
    second.submit("endless one", "a b c")
    (ending,) = second.collect(1).values()
    assert isinstance(ending, Generated)
    assert ending.result.output_text == "a b c"
    assert second.thread.stop(20)
    assert second.thread.clear()


def test_an_engine_that_fails_when_it_is_cleared_is_not_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("secret words")

    bench.thread.start()
    bench.submit("endless one", "endless story")
    wait_until(lambda: bench.thread.request_count == 1, "it is not in the engine")
    assert bench.thread.stop(20)
    monkeypatch.setattr(bench.engine, "step", fail)
    assert not bench.thread.clear()
