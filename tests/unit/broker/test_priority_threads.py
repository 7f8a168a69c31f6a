"""Which call runs next on the worker's threads, and on how many at once."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from helix_jobs.broker.celery.priority_threads import URGENT, PriorityThreads

BULK = 9
PATIENCE = 20


class Calls:
    """Calls that say when they begin, and end when they may."""

    def __init__(self, limit: int, spare: int) -> None:
        self.threads = PriorityThreads(limit, spare)
        self.begun: list[str] = []
        self._changed = threading.Condition()
        self._may_end: dict[str, threading.Event] = {}

    def add(self, name: str, priority: int):
        self._may_end[name] = threading.Event()
        return self.threads.submit(priority, lambda: self._run(name))

    def _run(self, name: str) -> str:
        with self._changed:
            self.begun.append(name)
            self._changed.notify_all()
        assert self._may_end[name].wait(PATIENCE)
        return name

    def end(self, *names: str) -> None:
        for name in names:
            self._may_end[name].set()

    def wait_for(self, *names: str) -> None:
        """Until exactly these have begun, in any order."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= len(names), PATIENCE), self.begun
        assert sorted(self.begun) == sorted(names)

    def close(self) -> None:
        self.end(*self._may_end)
        self.threads.shutdown()


@pytest.fixture
def calls(request: pytest.FixtureRequest):
    made = Calls(*request.param)
    yield made
    made.close()


@pytest.mark.parametrize("calls", [(2, 1)], indirect=True)
def test_an_urgent_call_runs_while_bulk_calls_have_all_their_threads(calls: Calls) -> None:
    for name in "abcd":
        calls.add(name, BULK)
    calls.wait_for("a", "b")
    calls.add("urgent", URGENT)
    calls.wait_for("a", "b", "urgent")
    assert calls.threads.thread_count == 3


@pytest.mark.parametrize("calls", [(1, 2)], indirect=True)
def test_spare_threads_take_no_bulk_call(calls: Calls) -> None:
    done = calls.add("urgent", URGENT)
    calls.add("a", BULK)
    calls.add("b", BULK)
    calls.wait_for("urgent", "a")
    calls.end("urgent")
    assert done.result(PATIENCE) == "urgent"
    done = calls.add("next", URGENT)
    calls.end("next")
    assert done.result(PATIENCE) == "next", "its thread passes the bulk call that waits"
    assert "b" not in calls.begun
    calls.end("a")
    calls.wait_for("urgent", "a", "next", "b")


@pytest.mark.parametrize("calls", [(1, 0)], indirect=True)
def test_waiting_calls_run_by_priority_and_of_equals_in_their_order(calls: Calls) -> None:
    calls.add("first", BULK)
    calls.wait_for("first")
    asked = {"a": BULK, "b": 4, "c": URGENT, "d": 4, "e": BULK}
    futures = [calls.add(name, priority) for name, priority in asked.items()]
    calls.end("first", *asked)
    for future in futures:
        future.result(PATIENCE)
    assert calls.begun == ["first", "c", "b", "d", "a", "e"]


@pytest.mark.parametrize("calls", [(1, 1)], indirect=True)
def test_a_shutdown_waits_for_what_runs_and_cancels_what_waits(calls: Calls) -> None:
    running, waiting = calls.add("a", BULK), calls.add("b", BULK)
    calls.wait_for("a")
    ended = threading.Thread(target=calls.threads.shutdown, kwargs={"cancel_futures": True})
    ended.start()
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE)
    assert not running.done()
    calls.end("a")
    ended.join(PATIENCE)
    assert not ended.is_alive()
    assert running.result() == "a"
    with pytest.raises(RuntimeError, match="shut down"):
        calls.add("late", URGENT)


@pytest.mark.parametrize("calls", [(1, 0)], indirect=True)
def test_an_error_is_the_call_s_own(calls: Calls) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        calls.threads.submit(BULK, fail).result(PATIENCE)
    done = calls.add("a", BULK)
    calls.end("a")
    assert done.result(PATIENCE) == "a"


@pytest.mark.parametrize("calls", [(2, 0)], indirect=True)
def test_a_system_without_threads_refuses_only_where_none_is_there(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError, match="start new thread"):
        calls.add("a", BULK)
    monkeypatch.setattr(threading.Thread, "start", start)
    calls.add("b", BULK)
    calls.wait_for("b")
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    done = calls.add("c", BULK)
    calls.end("b", "c")
    assert done.result(PATIENCE) == "c", "the thread that is there takes it"
