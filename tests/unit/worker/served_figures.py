"""Figures for a metrics server to serve: a queue's and a worker's, each unlike the others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.storage.records import QueueFigures
from helix_jobs.storage.states import OUTCOMES
from helix_jobs.worker.counters import WorkerCounters
from helix_jobs.worker.figures import WorkerFigures

NOW = datetime.now(UTC)
QUEUE = QueueFigures(
    queued=12,
    running=3,
    ended=dict.fromkeys(OUTCOMES, 0) | {"succeeded": 7, "deadline": 2},
    oldest_queued_at=NOW - timedelta(minutes=10),
    oldest_claimed_at=None,
    oldest_heartbeat_at=NOW + timedelta(hours=1),
    live_workers=1,
)


def worker(**counters) -> WorkerFigures:
    return WorkerFigures(
        worker_id='w"1\n',
        engine=FakeEngine(depth=0).info,
        counters=EngineCounters(**counters),
        slots_used=3,
        tokens_per_second=45.5,
        idle_seconds=1.5,
        jobs=WorkerCounters(
            delivered=9, outcomes={"succeeded": 5}, fenced=1, rejected_messages=2, void_messages=3, from_cache=8
        ),
        published=10,
        republished=4,
        reclaimed=6,
        reconciler_errors=0,
        reconnections=1,
        from_cache=20,
        memory={"process": 1000},
    )
