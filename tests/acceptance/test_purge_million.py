"""A purge of a million jobs beside a writer: what goes, what stays, and what the writer waited. Run with -m slow -s."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import bindparam, func, select, text
from store_helpers import new_jobs, now, register, stored_batch

from helix_jobs.jobs import store
from helix_jobs.jobs.database_check import check_rows
from helix_jobs.jobs.purge import plan_purge, purge
from helix_jobs.jobs.schema import UTCDateTime, jobs

JOBS = 1_000_000
_INSERT_JOBS = {
    "sqlite": """
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :n)
        INSERT INTO jobs (batch_id, line, custom_id, request, state, attempts, lease, queued_at, claimed_at,
                          finished_at)
        SELECT :b, i, 'c' || i, :request, 'succeeded', 1, 1, :now, :now, :now FROM n
    """,
    "postgresql": """
        INSERT INTO jobs (batch_id, line, custom_id, request, state, attempts, lease, queued_at, claimed_at,
                          finished_at)
        SELECT :b, i, 'c' || i, CAST(:request AS json), 'succeeded', 1, 1, :now, :now, :now
        FROM generate_series(1, :n) AS g(i)
    """,
}


def ended_batch_of(database, count: int) -> str:
    """A batch of jobs that all succeeded, with 300 bytes of prompt and 900 of answer each."""
    batch_id, _ = stored_batch(database, 1)
    values = {"b": batch_id, "n": count, "now": now(), "request": f'{{"prompt": "{"p" * 300}"}}'}
    with database.write(unlimited=True) as c:
        c.execute(text("DELETE FROM jobs WHERE batch_id = :b"), values)
        c.execute(text(_INSERT_JOBS[database.dialect]).bindparams(bindparam("now", type_=UTCDateTime)), values)
        c.execute(
            text(
                "INSERT INTO results (job_id, output_text, finish_reason, prompt_tokens, cached_prompt_tokens,"
                " completion_tokens, queue_seconds, decode_seconds, total_seconds, draft_tokens, accepted_tokens,"
                " target_model, device, dtype, worker_id, created_at) SELECT id, :answer, 'stop', 5, 1, 7, 1, 1, 1, 8,"
                " 6, 'target', 'cpu', 'float32', 'w1', :now FROM jobs WHERE batch_id = :b"
            ).bindparams(bindparam("now", type_=UTCDateTime)),
            values | {"answer": "a" * 900},
        )
        c.execute(text("UPDATE batches SET total = :n WHERE id = :b"), values)
        store.recount(c, batch_id)
    return batch_id


class Neighbour(threading.Thread):
    """Submits small batches and takes their jobs, one transaction after the other, and notes how long each took."""

    def __init__(self, database) -> None:
        super().__init__()
        self._database = database
        self.stop = threading.Event()
        self.seconds: list[float] = []
        self.claimed = 0

    def run(self) -> None:
        while not self.stop.is_set():
            batch_id = store.new_batch_id(now())
            self._timed(lambda c, b=batch_id: store.create_batch(c, store.NewBatch(id=b, created_at=now())))
            self._timed(lambda c, b=batch_id: store.insert_jobs(c, b, new_jobs(5), now()))
            self._timed(lambda c, b=batch_id: store.seal_batch(c, b, 5, "d" * 64))
            for job in self._timed(lambda c: store.publishable(c, 1)):
                self._timed(lambda c, i=job.id: store.claim(c, i, worker_id="w1", now=now()))
                self.claimed += 1
            time.sleep(0.02)

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
    while len(neighbour.seconds) < 100:
        time.sleep(0.1)
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
        assert batch_id not in store.batch_ids(c)
    assert left["running"] == neighbour.claimed
    assert left.get("succeeded", 0) == 0
    assert [finding.what for finding in check_rows(database, repair=False)] == []
