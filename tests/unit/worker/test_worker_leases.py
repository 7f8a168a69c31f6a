"""Leases of a running worker: which are lost, which are nobody's, and the heartbeat that compares them."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select

from helix_jobs.errors import DatabaseReplacedError
from helix_jobs.storage import batch_changes, changes_in_steps, claims, installation, publishing, retries
from helix_jobs.storage.schema import workers
from helix_jobs.time_limits import TimeLimits
from helix_jobs.worker import heartbeat
from helix_jobs.worker.heartbeat import Heartbeat, LeaseCheck, compare_leases
from tests.store_helpers import now
from tests.unit.worker.service_bench import WORKER
from tests.worker_box import wait_until


def test_leases_are_compared_without_false_alarms() -> None:
    before = {1: 1, 2: 1, 3: None, 5: 2}
    held = {1: 1, 3: 1, 4: 1, 6: 1}
    after = {1: 1, 2: 1, 3: 1, 6: 1}
    # 2: gone. 5: gone and already ended. 3: just claimed. 6: claimed meanwhile. 4: nobody's.
    assert compare_leases(before, held, after) == LeaseCheck(lost=((2, 1), (5, 2)), orphaned=((4, 1),))
    assert compare_leases({1: 1}, {1: 2}, {1: 1}).lost == ((1, 1),), "claimed again elsewhere"


def test_a_cancelled_job_is_dropped(make_bench: Any) -> None:
    bench = make_bench(hang="endless")
    (job,) = bench.add("endless")
    (future,) = bench.run(job)
    bench.wait_running(job)
    bench.heartbeat.check_leases()
    assert not future.done()
    bench.service.cancel_job(job)

    def is_dropped() -> bool:
        bench.heartbeat.check_leases()
        return bool(future.done())

    wait_until(is_dropped, "it goes on")
    assert future.result(20) is True
    assert bench.rows()[job].state == "cancelled"
    assert bench.service.counters.fenced == 1
    assert bench.result_ids() == []


def test_a_late_result_is_fenced(make_bench: Any) -> None:
    """The worker was given up and its job runs elsewhere when the result comes."""
    bench = make_bench(stall="stuck")
    (job,) = bench.add("stuck")
    (future,) = bench.run(job)
    bench.wait_running(job)
    with bench.database.write() as c:
        assert retries.reclaim(c, "me", datetime.now(UTC)).requeued == 1
        claim = claims.claim(c, job, worker_id="other", now=datetime.now(UTC))
    bench.engine.close()
    assert future.result(20) is True
    row = bench.rows()[job]
    assert (row.state, row.worker_id, row.lease) == ("running", "other", claim.lease)
    assert bench.result_ids() == []
    assert bench.service.counters.fenced == 1


def test_a_message_that_meets_its_jobs_earlier_run_is_not_lost(make_bench: Any) -> None:
    """Cancelled and retried at once, the job's new message comes while the old run still generates."""
    bench = make_bench(hang="endless")
    (job,) = bench.add("endless")
    (future,) = bench.run(job)
    bench.wait_running(job)
    bench.database.transact(lambda c: batch_changes.cancel_job(c, job, now=now()))
    changes_in_steps.retry_batch(bench.database, bench.rows()[job].batch_id)
    bench.database.transact(lambda c: publishing.mark_published(c, [job], datetime.now(UTC)))
    assert bench.service.run_job(job) is True
    bench.heartbeat.check_leases()
    assert future.result(20) is True
    bench.writer.submit(lambda _: None).result(20)
    row = bench.rows()[job]
    assert (row.state, row.published_at) == ("queued", None), "nobody would publish it before the broker is empty"


def test_a_database_that_was_exchanged_before_the_worker_entered_its_row_is_noticed(make_bench: Any) -> None:
    """It has connected, and named its queue after what it found; then the models were loaded for minutes."""
    bench = make_bench()
    with bench.database.read() as c:
        found = installation.installation_id(c)
    Heartbeat(bench.database, WORKER, bench.service, installation=found).register()
    with pytest.raises(DatabaseReplacedError, match="another database has taken its place"):
        Heartbeat(bench.database, WORKER, bench.service, installation="other").start()


def test_the_heartbeat_outlives_whatever_is_raised(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench()
    calls: list[None] = []
    twice = threading.Event()

    def check() -> None:
        calls.append(None)
        if len(calls) > 1:
            twice.set()
        raise OSError("no space left on device")

    beating = Heartbeat(bench.database, WORKER, bench.service, time_limits=TimeLimits(lease_check=0.01))
    monkeypatch.setattr(beating, "check_leases", check)
    beating.start()
    assert twice.wait(20)
    beating.stop()


def test_a_heartbeat_over_another_database_says_so_once_and_ends(
    make_bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench()
    told: list[BaseException] = []
    said = threading.Event()

    def tell(error: BaseException) -> None:
        told.append(error)
        said.set()

    beating = Heartbeat(
        bench.database,
        WORKER,
        bench.service,
        time_limits=TimeLimits(heartbeat=0.01, lease_check=0.01),
        on_replaced=tell,
    )
    beating.start()
    with monkeypatch.context() as patch:
        patch.setattr(heartbeat, "installation_id", lambda _: "another")
        assert said.wait(20)
    beating.stop()
    assert [type(error) for error in told] == [DatabaseReplacedError]
    assert "heartbeat" not in caplog.text


def test_a_revived_worker_registers_again(make_bench: Any) -> None:
    bench = make_bench()
    with bench.database.write() as c:
        retries.reclaim(c, "me", datetime.now(UTC))
    bench.heartbeat.beat()
    with bench.database.read() as c:
        assert c.execute(select(workers.c.stopped_at)).scalar_one() is None


@pytest.mark.thorough(fast=1)
def test_a_lease_nobody_works_on_is_handed_back(make_bench: Any) -> None:
    bench = make_bench()
    (job,) = bench.add("a b c")
    with bench.database.write() as c:
        claims.claim(c, job, worker_id="me", now=datetime.now(UTC))
    bench.heartbeat.check_leases()
    assert bench.rows()[job].state == "running", "once may be a claim that is just coming in"
    bench.heartbeat.check_leases()
    bench.writer.submit(lambda _: None).result(20)
    assert bench.rows()[job].state == "queued"
