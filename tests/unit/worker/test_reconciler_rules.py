"""Who is lost, who is dead, how much is published, since when a broker is empty: the reconciler's rules alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from helix_jobs.storage.process_identity import Here
from helix_jobs.storage.records import NewWorker, Worker
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS as TIME_LIMITS
from helix_jobs.worker.lost_messages import EmptyBroker, judge_empty_broker
from helix_jobs.worker.lost_workers import (
    Observation,
    dead_predecessors,
    lost_workers,
    observe,
    runs_low,
)
from tests.store_helpers import worker

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=5)


def _watch(looks):
    """Silence after a sequence of (heartbeats, elapsed)."""
    seen = {}
    for heartbeats, elapsed in looks:
        seen = observe(seen, heartbeats, elapsed)
    return {worker_id: observation.silent_seconds for worker_id, observation in seen.items()}


def test_silence_adds_up_only_while_the_heartbeat_stays_the_same():
    assert _watch([({"a": NOON}, 0.0), ({"a": NOON}, 1.0), ({"a": NOON}, 2.0)]) == {"a": 3.0}
    assert _watch([({"a": NOON}, 0.0), ({"a": NOON}, 9.0), ({"a": LATER}, 1.0)]) == {"a": 0.0}
    # A clock set back is a new value like any other.
    assert _watch([({"a": LATER}, 0.0), ({"a": LATER}, 9.0), ({"a": NOON}, 1.0)]) == {"a": 0.0}
    assert _watch([({"a": NOON}, 0.0), ({"a": NOON, "b": NOON}, 5.0), ({"b": NOON}, 1.0)]) == {"b": 1.0}
    assert _watch([({"ghost": None}, 0.0), ({"ghost": None}, 4.0)]) == {"ghost": 4.0}


@pytest.mark.parametrize(
    ("silences", "lost"),
    [
        ({"me": 1.0, "other": 29.9}, []),
        ({"me": 1.0, "other": 30.0, "third": 31.0}, ["other", "third"]),
        # My own beats do not get through: it is the database, not the others.
        ({"me": 10.1, "other": 300.0}, []),
        ({"other": 30.0}, ["other"]),
    ],
)
def test_who_is_lost(silences, lost):
    observations = {worker_id: Observation(NOON, silent) for worker_id, silent in silences.items()}
    assert lost_workers(observations, "me", lease=TIME_LIMITS.lease, own_silence=TIME_LIMITS.own_silence) == lost


def test_a_worker_never_declares_itself_lost():
    assert lost_workers({"me": Observation(NOON, 99.0)}, "me", lease=TIME_LIMITS.lease, own_silence=1000.0) == []


def _row(worker_id, **changes):
    new = worker(worker_id, **changes)
    fields = {name: getattr(new, name) for name in NewWorker.__dataclass_fields__}
    return Worker(**fields, started_at=NOON, heartbeat_at=NOON, stopped_at=None)


def test_who_is_certainly_dead_at_my_start():
    this = {"boot_id": "boot", "pid_namespace": "ns"}
    rows = [
        _row("gone", pid=555, **this),
        _row("elsewhere", pid=555, boot_id="another", pid_namespace="ns"),
        _row("living", pid=78, process_started="1", **this),
        _row("me", pid=77, process_started="2", **this),
    ]
    here = Here(started={77: "2", 78: "1"}.get, **this)
    assert dead_predecessors(rows, own_id="me", here=here) == ["gone"]
    assert dead_predecessors([_row("me", pid=555, **this)], own_id="me", here=here) == []


@pytest.mark.parametrize(
    ("depth", "low"), [(0, True), (1, True), (900, True), (901, False), (1000, False), (2000, False)]
)
def test_a_tenth_of_the_window_is_worth_publishing(depth, low):
    assert runs_low(depth, 1000) is low


def test_a_window_of_one_is_filled():
    assert runs_low(0, 1)


def test_emptiness_counts_from_its_beginning():
    empty = judge_empty_broker(None, depth=0, latest_published_at=NOON, now=5.0)
    assert empty == EmptyBroker(5.0, NOON)
    assert judge_empty_broker(empty, depth=0, latest_published_at=LATER, now=9.0) == empty
    assert judge_empty_broker(empty, depth=1, latest_published_at=NOON, now=9.0) is None
    assert judge_empty_broker(empty, depth=0, latest_published_at=None, now=9.0) is None
