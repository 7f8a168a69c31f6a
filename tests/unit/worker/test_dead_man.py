"""The dead man's switch: what it does about loops that do not come round, and when it keeps still."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from helix_jobs.broker.publisher import CONNECT_TIMEOUT, SOCKET_TIMEOUT, ProbingPublisher, QueueNames
from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.observability.rounds import Rounds, come_round
from helix_jobs.storage import postgres_engine, sqlite_engine
from helix_jobs.storage.database import TRANSACTION_ATTEMPTS
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS as TIME_LIMITS
from helix_jobs.worker.dead_man import (
    LOOK_SECONDS,
    DeadMansSwitch,
    Limit,
    Silence,
    observe,
    say,
    where_threads_stand,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.storage.database import Database


class Calls:
    """Counts how often overdue calls were to be closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close_overdue(self, seconds: float) -> int:
        assert seconds == TIME_LIMITS.close_call
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
            close=TIME_LIMITS.close_call,
            limit=Limit(TIME_LIMITS.end_process, self.ended.append),
            limits={"engine": Limit(TIME_LIMITS.longest_step, self.hung.append)},
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
    monkeypatch.setattr("helix_jobs.worker.dead_man.SAY_SECONDS", 20.0)
    say("heard")
    assert "heard" in caplog.text
    monkeypatch.setattr("helix_jobs.worker.dead_man.SAY_SECONDS", 0.05)
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

    thread = threading.Thread(target=wait_for_good, args=("the prompt's text",), name="named-by-this-test")
    thread.start()
    assert begun.wait(20)
    found = where_threads_stand()
    ended.set()
    thread.join()
    (line,) = [line for line in found.splitlines() if line.startswith("named-by-this-test")]
    assert "wait_for_good (test_dead_man.py:" in line
    assert "the prompt" not in found


class SlowRedis:
    """Answers each command at the last moment."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.client = self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def command(*_: object, **__: object) -> Any:
            self._bench.pass_by(SOCKET_TIMEOUT - 0.1, looks=5)
            return {"type": b"none", "queue_declare": SimpleNamespace(message_count=5)}.get(name)

        return command


def test_a_broker_that_is_slow_with_every_answer_is_no_silence(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog's probe asks two dozen things in a row."""
    publisher = ProbingPublisher("redis://127.0.0.1:1/0", QueueNames("test"))
    monkeypatch.setattr(publisher, "_open_channel", lambda: SlowRedis(bench))
    with bench.rounds.watched("watchdog"):
        assert [publisher.depth() for _ in range(2)] == [5, 5]
    assert bench.now > TIME_LIMITS.end_process
    assert bench.ended == []


def test_a_database_that_is_slow_with_every_answer_is_no_silence(bench: Bench, make_bench: Any) -> None:
    """A round of the heartbeat, and one in which it must enter its row again, take a dozen statements."""
    service = make_bench()
    with service.database.write() as c:
        engines = {c.engine}
    if service.database.dialect == "sqlite":
        with service.database.read() as c:
            engines.add(c.engine)
    seconds = TIME_LIMITS.statement + TIME_LIMITS.answer_margin - 1.0

    def slow(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            bench.pass_by(seconds, looks=60)

    with ExitStack() as stack:
        for one in engines:
            event.listen(one, "before_cursor_execute", slow)
            stack.callback(event.remove, one, "before_cursor_execute", slow)
        with bench.rounds.watched("heartbeat"):
            service.heartbeat.beat()
            service.heartbeat.register()
            service.heartbeat.check_leases()
    assert bench.now > TIME_LIMITS.end_process
    assert bench.ended == []


def test_no_single_wait_is_longer_than_the_switch_is_patient() -> None:
    """Between two notes of a loop lies one of these. Each is the longest sum of limits with no answer in between."""
    hosts = 2  # a name may stand for an IPv6 address and an IPv4 one
    handshake = 6  # protocol, user, database, two names of the library, a sign of life
    waits = {
        "a connection out of the pool, none idle, and its sign of life": TIME_LIMITS.free_connection
        + TIME_LIMITS.sign_of_life,
        "a connection to Postgres": hosts * postgres_engine.CONNECT_TIMEOUT_SECONDS,
        "an answer of Postgres": TIME_LIMITS.statement + TIME_LIMITS.answer_margin,
        "a connection to SQLite, and its lock": TIME_LIMITS.free_connection + 3 * sqlite_engine.BUSY_TIMEOUT_SECONDS,
        "a transaction that lost a race": sum(0.02 * 2**n for n in range(TRANSACTION_ATTEMPTS)),
        "a connection to the broker": hosts * CONNECT_TIMEOUT + handshake * SOCKET_TIMEOUT,
        "an answer of the broker": SOCKET_TIMEOUT + 1.0,
        "an idle writer": TIME_LIMITS.idle_writer,
        "an idle reconciler": TIME_LIMITS.reconcile,
        "an idle heartbeat": TIME_LIMITS.heartbeat,
        "an idle watchdog": TIME_LIMITS.watchdog_look,
    }
    longest = TIME_LIMITS.end_process - 10 * LOOK_SECONDS
    # A loop may pause before it waits.
    pause = max(seconds for wait, seconds in waits.items() if wait.startswith("an idle"))
    assert {wait: seconds for wait, seconds in waits.items() if pause + seconds > longest} == {}


def test_each_answer_of_a_database_is_a_round(database: Database) -> None:
    rounds = Rounds()
    with rounds.watched("writer"), database.write() as c:
        before = rounds.counts()["writer"]
        for _ in range(3):
            c.exec_driver_sql("SELECT 1")
        assert rounds.counts()["writer"] >= before + 3
    come_round()
    assert rounds.counts() == {}, "it is nobody's"


@pytest.mark.postgres
def test_a_refusal_is_an_answer(postgres_database: Database) -> None:
    rounds = Rounds()
    with rounds.watched("writer"):
        with suppress(DatabaseUnreachableError), postgres_database.write() as c:
            before = rounds.counts()["writer"]
            c.exec_driver_sql("SELECT 1 FROM nowhere")
        assert rounds.counts()["writer"] > before
