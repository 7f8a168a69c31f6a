"""A purge of a million jobs beside a writer: what goes, what stays, and what the writer waited. Run with -m slow -s."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from helix_jobs.client.purge import plan_purge, purge
from helix_jobs.storage import batches, claims, publishing, status
from helix_jobs.storage.check import check_rows
from helix_jobs.storage.records import NewBatch
from helix_jobs.storage.schema import jobs
from tests.ended_batches import ended_batch_of
from tests.store_helpers import new_jobs, now, register
from tests.worker_box import wait_until

JOBS = 1_000_000


class Neighbour(threading.Thread):
    """Submits small batches and takes their jobs, one transaction after the other, and notes how long each took."""

    def __init__(self, database) -> None:
        super().__init__(daemon=True)  # a test that fails does not stop it
        self._database = database
        self.stop = threading.Event()
        self.seconds: list[float] = []
        self.claimed = 0

    def run(self) -> None:
        while not self.stop.is_set():
            batch_id = batches.new_batch_id(now())
            self._timed(lambda c, b=batch_id: batches.create_batch(c, NewBatch(id=b, created_at=now())))
            self._timed(lambda c, b=batch_id: batches.insert_jobs(c, b, new_jobs(5), now()))
            self._timed(lambda c, b=batch_id: batches.seal_batch(c, b, 5, "d" * 64))
            for job in self._timed(lambda c: publishing.publishable(c, 1)):
                self._timed(lambda c, i=job.id: claims.claim(c, i, worker_id="w1", now=now()))
                self.claimed += 1
            self.stop.wait(0.02)

    def _timed(self, function):
        started = time.perf_counter()
        found = self._database.transact(function)
        self.seconds.append(time.perf_counter() - started)
        return found


@pytest.mark.slow
def test_a_million_jobs_go_beside_a_writer(database, monkeypatch):
    register(database, "w1")
    batch_id = ended_batch_of(database, JOBS)
    plan = plan_purge(database, older_than=timedelta(0))
    assert [batch.id for batch in plan.batches] == [batch_id]
    neighbour = Neighbour(database)
    neighbour.start()
    wait_until(lambda: len(neighbour.seconds) >= 100, "the neighbour stands still", 600.0)
    # The first ones pay for the log that the million left.
    alone = sorted(neighbour.seconds[50:])
    neighbour.seconds = []
    held: list[float] = []
    transact = type(database).transact

    def timed(self, function, **options):
        if threading.current_thread() is neighbour:
            return transact(self, function, **options)
        started = time.perf_counter()
        try:
            return transact(self, function, **options)
        finally:
            held.append(time.perf_counter() - started)

    monkeypatch.setattr(type(database), "transact", timed)
    started = time.perf_counter()
    done = purge(database, plan)
    purged = time.perf_counter() - started
    neighbour.stop.set()
    neighbour.join()
    beside = sorted(neighbour.seconds)
    print(  # noqa: T201  (what the test is run for)
        f"\n{database.dialect}: {done}; {purged:.1f} s in {len(held)} transactions, the longest {max(held):.2f} s;"
        f" the neighbour's transactions alone: median"
        f" {alone[len(alone) // 2] * 1e3:.1f} ms, longest {alone[-1] * 1e3:.0f} ms; beside: median"
        f" {beside[len(beside) // 2] * 1e3:.1f} ms, 99% {beside[len(beside) * 99 // 100] * 1e3:.0f} ms, longest"
        f" {beside[-1] * 1e3:.0f} ms, {len(beside)} of them"
    )
    assert (done.batches, done.jobs, done.results) == (1, JOBS, JOBS)
    with database.read() as c:
        states = c.execute(select(jobs.c.state, func.count().label("jobs")).group_by(jobs.c.state))
        left = {row.state: row.jobs for row in states}
        assert batch_id not in status.batch_ids(c)
    assert left["running"] == neighbour.claimed
    assert left.get("succeeded", 0) == 0
    assert [finding.what for finding in check_rows(database, repair=False)] == []
