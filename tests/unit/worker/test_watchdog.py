"""When a worker without deliveries reconnects, and when it gives up."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field, replace

import pytest

from helix_jobs.errors import BrokerUnreachableError, DatabaseUnreachableError
from helix_jobs.worker.counters import WorkerCounters
from helix_jobs.worker.watchdog import Action, Sample, Stall, Watchdog, judge
from tests.store_helpers import stored_batch

DRY = Sample(deliveries=7, idle_slots=2, backlog=100, messages=50)


def follow(*samples: Sample | tuple[Sample, float], window: float = 60.0) -> list[Action]:
    """The actions that follow from samples ten seconds apart, or as far as they say."""
    stall, actions = None, []
    for entry in samples:
        sample, elapsed = entry if isinstance(entry, tuple) else (entry, 10.0)
        stall, action = judge(stall, sample, elapsed=elapsed, window=window)
        actions.append(action)
    return actions


def acted(actions: list[Action]) -> list[tuple[int, Action]]:
    return [(index, action) for index, action in enumerate(actions) if action is not Action.NONE]


def test_a_window_without_deliveries_reconnects_and_a_second_one_gives_up():
    assert acted(follow(*[DRY] * 13)) == [(6, Action.RECONNECT), (12, Action.GIVE_UP)]


def test_a_broker_without_messages_is_no_excuse():
    """The reconciler publishes what waits in the database within half a window."""
    assert acted(follow(*[replace(DRY, messages=0)] * 7)) == [(6, Action.RECONNECT)]


@pytest.mark.parametrize(
    "relief",
    [
        {"deliveries": 8},
        {"idle_slots": 0},
        {"backlog": 0},
        {"messages": None},
    ],
    ids=["a delivery", "all slots busy", "nothing waits", "the broker is away"],
)
@pytest.mark.parametrize("before", [3, 6, 9])
def test_relief_begins_the_count_anew(relief, before):
    wet = replace(DRY, **relief)
    after = replace(DRY, deliveries=wet.deliveries)
    actions = follow(*[DRY] * (before + 1), wet, *[after] * 14)
    later = [index - before - 2 for index, _ in acted(actions) if index > before]
    # A delivery begins a new count itself; after any other relief the next look does.
    begun = -1 if "deliveries" in relief else 0
    # Whoever is told to give up is not asked again.
    assert later[:2] == [begun + 6, begun + 12]
    assert actions[before + 2 + begun + 6] is Action.RECONNECT


def test_a_standstill_is_no_stall():
    """The caller passes in at most two intervals for a gap; without that a stopped process would give up at once."""
    assert acted(follow(DRY, (DRY, 59.0))) == []
    assert judge(Stall(7, 59.0), DRY, elapsed=0.0, window=60.0) == (Stall(7, 59.0), Action.NONE)


@pytest.mark.parametrize("unknown", [{}, {"messages": None}, {"messages": None, "backlog": None}], ids=repr)
def test_without_descriptors_one_window_is_enough(unknown):
    """Nothing could be connected anew. Neither broker nor database need answer for that."""
    exhausted = replace(DRY, shortage="no descriptors", **unknown)
    assert acted(follow(*[exhausted] * 7)) == [(6, Action.GIVE_UP)]


@pytest.mark.parametrize("relief", [{"deliveries": 8}, {"idle_slots": 0}, {"backlog": 0}], ids=repr)
def test_a_worker_at_its_limit_that_lacks_nothing_goes_on(relief):
    exhausted = replace(DRY, shortage="no descriptors", messages=None)
    assert acted(follow(*[exhausted] * 6, replace(exhausted, **relief), *[exhausted] * 6)) == []


@dataclass
class Scene:
    """Stands in for broker, service and the worker that acts."""

    deliveries: int = 0
    idle: int = 1
    kept: int = 0
    stuck: int = 0
    away: bool = False
    asked: int = 0
    now: float = 0.0
    done: list[str] = field(default_factory=list)

    counters = property(lambda self: WorkerCounters(delivered=self.deliveries))
    idle_slots = property(lambda self: self.idle)
    kept_waiting = property(lambda self: self.kept)

    def depth(self) -> int:
        self.asked += 1
        if self.away:
            raise BrokerUnreachableError("away")
        return 5

    def close(self) -> None:
        self.done.append("closed")

    def watchdog(self, database, interval: float = 5.0) -> Watchdog:
        return Watchdog(
            database,
            self,
            self,
            reconnect=lambda: self.done.append("reconnect"),
            give_up=self.done.append,
            window=20.0,
            interval=interval,
            clock=lambda: self.now,
        )

    def look(self, watchdog: Watchdog, times: int, step: float = 5.0) -> None:
        for _ in range(times):
            watchdog.check()
            self.now += step


def test_it_says_so_reconnects_and_then_gives_up(database, caplog):
    stored_batch(database, 3)
    scene = Scene()
    watchdog = scene.watchdog(database)
    scene.look(watchdog, 4)
    assert scene.done == []
    scene.look(watchdog, 1)
    assert scene.done == ["reconnect"]
    assert watchdog.reconnections == 1
    said = "3 jobs waiting in the database (5 ids in the broker), 1 slot idle, and nothing was delivered"
    assert f"{said} for 20 s; this worker connects to the broker again" in caplog.text
    scene.look(watchdog, 4)
    assert scene.done == ["reconnect", f"{said} for 20 s after connecting anew"]


def test_jobs_that_wait_in_this_worker_are_no_missing_deliveries(database):
    """One that waits to run alone, or is put off, has no message that could come; another worker may get its next."""
    stored_batch(database, 3)
    scene = Scene(kept=3)
    watchdog = scene.watchdog(database)
    scene.look(watchdog, 20)
    assert scene.done == []
    scene.kept = 2
    scene.look(watchdog, 5)
    assert scene.done == ["reconnect"]


def test_a_process_that_stood_still_is_not_blamed(database):
    stored_batch(database, 3)
    scene = Scene()
    scene.look(scene.watchdog(database), 2, step=3600.0)
    assert scene.done == []


def test_an_idle_worker_without_work_asks_the_broker_nothing(database):
    scene = Scene()
    watchdog = scene.watchdog(database)
    scene.look(watchdog, 20)
    stored_batch(database, 1, seal=False)
    scene.look(watchdog, 20)
    scene.idle = 0
    stored_batch(database, 1)
    scene.look(watchdog, 20)
    assert (scene.asked, scene.done) == (0, [])


def test_while_the_broker_is_away_nothing_is_done(database):
    stored_batch(database, 3)
    scene = Scene(away=True)
    watchdog = scene.watchdog(database)
    scene.look(watchdog, 100)
    assert scene.done == []
    scene.away = False
    scene.look(watchdog, 5)
    assert scene.done == ["reconnect"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("database_answers", [True, False])
def test_without_descriptors_it_names_the_limit_and_gives_up(database, monkeypatch, number, database_answers):
    """Its own probe fails for the same reason; that is no broker that is away."""
    stored_batch(database, 3)
    scene = Scene(away=True)
    watchdog = scene.watchdog(database)
    shortage: OSError | None = OSError(number, "Too many open files")
    monkeypatch.setattr("helix_jobs.worker.watchdog.missing_descriptor", lambda: shortage)
    if not database_answers:
        monkeypatch.setattr("helix_jobs.worker.watchdog.publishing.backlog", _away)
    scene.look(watchdog, 4)
    assert scene.done == []
    scene.look(watchdog, 1)
    (why,) = scene.done
    assert ("ulimit -n" in why and "LimitNOFILE" in why) is (number == errno.EMFILE)
    assert "1 slot idle, and nothing was delivered for 20 s" in why
    assert scene.asked == 0


@pytest.mark.parametrize("idle", [0, 2])
def test_a_worker_whose_every_job_waits_for_descriptors_gives_up(database, monkeypatch, idle):
    """No slot need be idle, and no other job need wait: those that it has cannot be claimed or written down."""
    scene = Scene(idle=idle, stuck=4, away=True)
    watchdog = scene.watchdog(database)
    monkeypatch.setattr("helix_jobs.worker.watchdog.missing_descriptor", lambda: OSError(errno.EMFILE, "x"))
    scene.look(watchdog, 4)
    assert scene.done == []
    scene.look(watchdog, 1)
    (why,) = scene.done
    assert "LimitNOFILE" in why
    assert "4 jobs here cannot be claimed, begun or written down" in why


def test_jobs_that_are_computed_or_lack_nothing_go_on(database, monkeypatch):
    scene = Scene(idle=0, stuck=4)
    watchdog = scene.watchdog(database)
    scene.look(watchdog, 20)
    monkeypatch.setattr("helix_jobs.worker.watchdog.missing_descriptor", lambda: OSError(errno.EMFILE, "x"))
    scene.look(watchdog, 4)
    scene.stuck = 0
    scene.look(watchdog, 4)
    scene.stuck = 4
    scene.look(watchdog, 4)
    scene.deliveries += 1
    scene.look(watchdog, 4)
    assert scene.done == []


def test_descriptors_that_come_back_in_time_end_nobody(database, monkeypatch):
    stored_batch(database, 3)
    scene = Scene(away=True)
    watchdog = scene.watchdog(database)
    monkeypatch.setattr("helix_jobs.worker.watchdog.missing_descriptor", lambda: OSError(errno.EMFILE, "x"))
    scene.look(watchdog, 4)
    monkeypatch.undo()
    scene.look(watchdog, 20)
    assert scene.done == []


def _away(_):
    raise DatabaseUnreachableError("away")


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("error", [DatabaseUnreachableError("away"), ZeroDivisionError("a bug")], ids=repr)
def test_a_database_that_is_away_ends_neither_the_thread_nor_the_worker(sqlite_database, monkeypatch, error):
    asked, asked_often = [], threading.Event()

    def backlog(_):
        asked.append(1)
        if len(asked) > 10:
            asked_often.set()
        raise error

    scene = Scene()
    watchdog = scene.watchdog(sqlite_database, interval=0.001)
    monkeypatch.setattr("helix_jobs.worker.watchdog.publishing.backlog", backlog)
    watchdog.start()
    assert asked_often.wait(20), "the thread has ended"
    assert watchdog.stop(10)
    assert scene.done == ["closed"]
