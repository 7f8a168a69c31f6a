"""The service with a real database, a real writer and the fake engine."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.engine.request import FinishReason, GenerationResult
from helix_jobs.errors import EngineError, PromptTooLongError
from helix_jobs.jobs import heartbeat, store
from helix_jobs.jobs.engine_thread import Generated, RequestFailed, Run
from helix_jobs.jobs.heartbeat import Heartbeat, LeaseCheck, compare_leases
from helix_jobs.jobs.job_endings import Fail, Leave, Succeed, Withdrawn, decide
from helix_jobs.jobs.result_writer import GroupCommitWriter
from helix_jobs.jobs.runs import counted, log_run, run_totals
from helix_jobs.jobs.schema import jobs, results, workers
from helix_jobs.jobs.store import NewBatch, NewJob, NewWorker, RunTotals
from helix_jobs.jobs.worker_counters import WORKER_OUTCOMES, WorkerCounters
from helix_jobs.jobs.worker_service import WorkerService
from helix_jobs.testing import FakeEngine, FakeFaults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.jobs.database import Database

WORKER = NewWorker(id="me", hostname="h", pid=1, device="fake", target_model="fake-target", draft_model=None, slots=4)
RESULT = GenerationResult(
    request_id="1.1",
    output_text="text",
    output_token_ids=(1, 2, 3, 4),
    finish_reason=FinishReason.STOP,
    error=None,
    prompt_tokens=3,
    cached_prompt_tokens=1,
    queue_seconds=0.5,
    ttft_seconds=0.25,
    decode_seconds=1.0,
    total_seconds=2.0,
    draft_tokens=4,
    accepted_tokens=3,
    target_steps=2,
)
RUN = Run(EngineCounters(), 0.0)


@pytest.mark.parametrize(
    ("ending", "decision"),
    [
        (Withdrawn.LEASE_LOST, Leave.DROP),
        (Withdrawn.HANDED_BACK, Leave.RELEASE),
        (RequestFailed(PromptTooLongError("too long")), Fail("prompt_too_long", "too long")),
        (Generated(replace(RESULT, finish_reason=FinishReason.ABORTED), RUN), Leave.RELEASE),
        (Generated(replace(RESULT, finish_reason=None, error=EngineError("x")), RUN), Fail("engine_error", "x")),
    ],
)
def test_endings_without_a_result(ending: Any, decision: Any) -> None:
    assert decide(ending, info=FakeEngine().info, waited_seconds=1.0) == decision


def test_a_result_row_says_what_was_measured() -> None:
    decision = decide(Generated(RESULT, RUN), info=FakeEngine().info, waited_seconds=10.0)
    assert isinstance(decision, Succeed)
    row = decision.row
    assert (row.queue_seconds, row.tokens_per_second, row.acceptance_rate) == (10.5, 2.0, 0.75)
    assert (row.completion_tokens, row.mean_acceptance_length, row.cached_prompt_tokens) == (4, 2.0, 1)
    assert decision.run is RUN


def test_leases_are_compared_without_false_alarms() -> None:
    before = {1: 1, 2: 1, 3: None, 5: 2}
    held = {1: 1, 3: 1, 4: 1, 6: 1}
    after = {1: 1, 2: 1, 3: 1, 6: 1}
    # 2: gone. 5: gone and already ended. 3: just claimed. 6: claimed meanwhile. 4: nobody's.
    assert compare_leases(before, held, after) == LeaseCheck(lost=((2, 1), (5, 2)), orphaned=((4, 1),))
    assert compare_leases({1: 1}, {1: 2}, {1: 1}).lost == ((1, 1),), "claimed again elsewhere"


def test_a_runs_figures_are_the_difference_of_two_snapshots() -> None:
    before = EngineCounters(steps=10, sequence_steps=40, decode_sequence_steps=30, completion_tokens=100)
    after = EngineCounters(
        steps=20, sequence_steps=80, decode_sequence_steps=50, completion_tokens=160, draft_tokens=60, peak_blocks=7
    )
    totals = run_totals(before, after, jobs_finished=3, seconds=2.0)
    assert (totals.steps, totals.mean_batch_size, totals.mean_depth) == (10, 4.0, 3.0)
    assert (totals.completion_tokens, totals.tokens_per_second, totals.peak_blocks) == (60, 30.0, 7)
    empty = run_totals(before, before, jobs_finished=0, seconds=0.0)
    assert (empty.mean_batch_size, empty.mean_depth, empty.tokens_per_second) == (None, None, None)


class Bench:
    """A service over a database with some jobs."""

    def __init__(self, database: Database, **faults: str) -> None:
        self.database = database
        self.engine = FakeEngine(max_batch_size=4, faults=FakeFaults(**faults))
        self.writer = GroupCommitWriter(database)
        self.broken: list[BaseException] = []
        self.service = WorkerService(
            database, self.engine, self.writer, worker_id="me", grace=30.0, on_broken=self.broken.append
        )
        self.heartbeat = Heartbeat(database, WORKER, self.service)
        self.heartbeat._register()
        self.service.start()
        self.pool = ThreadPoolExecutor(16)

    def add(self, *prompts: str) -> list[int]:
        requests = [{"prompt": prompt, "sampling": {}, "seed": 1, "metadata": {}} for prompt in prompts]
        return self.add_raw(*requests)

    def add_raw(self, *requests: dict[str, Any]) -> list[int]:
        now = datetime.now(UTC)
        with self.database.write() as c:
            name = f"b-{len(self.rows())}"
            store.create_batch(c, NewBatch(id=name, created_at=now))
            lines = [NewJob(line=n, custom_id=None, request=r) for n, r in enumerate(requests, 1)]
            store.insert_jobs(c, name, lines, now)
            store.seal_batch(c, name, len(requests), "digest")
            return list(c.execute(select(jobs.c.id).where(jobs.c.batch_id == name).order_by(jobs.c.line)).scalars())

    def rows(self) -> dict[int, Any]:
        with self.database.read() as c:
            return {row.id: row for row in c.execute(select(jobs))}

    def result_ids(self) -> list[int]:
        with self.database.read() as c:
            return sorted(c.execute(select(results.c.job_id)).scalars())

    def run(self, *job_ids: int) -> list[Any]:
        return [self.pool.submit(self.service.run_job, job_id) for job_id in job_ids]

    def wait_running(self, *job_ids: int) -> None:
        for _ in range(2000):
            leases = self.service.leases()
            if all(leases.get(job_id) for job_id in job_ids):
                return
            time.sleep(0.005)
        pytest.fail("the jobs do not start")

    def close(self) -> None:
        self.service.hand_back()
        self.engine.close()
        assert self.service.wait_idle(20)
        self.pool.shutdown()
        assert self.service.stop(20)
        assert self.writer.close(20)


@pytest.fixture
def make_bench(database: Database) -> Iterator[Any]:
    made: list[Bench] = []

    def make(**faults: str) -> Bench:
        made.append(Bench(database, **faults))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def test_every_end_is_written(make_bench: Any) -> None:
    bench = make_bench(fail="bad")
    good, bad, long = bench.add("a b c", "bad", "w " * 5000)
    (broken,) = bench.add_raw({"prompt": 5, "sampling": {"temperature": "hot"}})
    assert [future.result(20) for future in bench.run(good, bad, long, broken)] == [True] * 4
    rows = bench.rows()
    assert [(rows[i].state, rows[i].error_code) for i in (good, bad, long, broken)] == [
        ("succeeded", None),
        ("failed", "engine_error"),
        ("failed", "prompt_too_long"),
        ("failed", "invalid_request"),
    ]
    assert bench.result_ids() == [good]
    assert bench.service.active_count == 0


def test_unknown_finished_and_doubled_ids_change_nothing(make_bench: Any) -> None:
    bench = make_bench()
    (job,) = bench.add("a b c")
    assert all(future.result(20) for future in bench.run(*[job] * 8))
    assert bench.service.run_job(job)
    assert bench.service.run_job(2**62)
    assert bench.rows()[job].attempts == 1
    assert bench.result_ids() == [job]


def test_at_its_last_attempt_a_job_runs_alone(make_bench: Any) -> None:
    """Two workers died with it: it waits until nothing else is claimed, and nothing is claimed beside it."""
    bench = make_bench(hang="endless", stall="stuck")
    endless, suspect, third, twice_lost = bench.add("endless", "stuck", "a b c", "d e f")
    with bench.database.write() as c:
        c.execute(update(jobs).where(jobs.c.id.in_([suspect, twice_lost])).values(attempts=2))
    (running,) = bench.run(endless)
    bench.wait_running(endless)
    (last,) = bench.run(suspect)
    while bench.service._gate._waiting_alone == 0:
        time.sleep(0.005)
    others = bench.run(third, twice_lost)
    time.sleep(0.05)
    assert {i: (row.state, row.attempts) for i, row in bench.rows().items()} == {
        endless: ("running", 1),
        suspect: ("queued", 2),
        third: ("queued", 0),
        twice_lost: ("queued", 2),
    }
    bench.database.transact(lambda c: store.cancel_job(c, endless))
    for _ in range(400):
        bench.heartbeat.check_leases()
        if running.done():
            break
        time.sleep(0.01)
    bench.wait_running(suspect)
    time.sleep(0.05)
    assert [bench.rows()[i].state for i in (third, twice_lost)] == ["queued", "queued"]
    bench.engine.close()
    assert [future.result(20) for future in (last, *others)] == [True] * 3
    assert {i: (row.state, row.attempts) for i, row in bench.rows().items() if i != endless} == {
        suspect: ("succeeded", 3),
        third: ("succeeded", 1),
        twice_lost: ("succeeded", 3),
    }


def test_a_job_that_waits_to_run_alone_goes_back_untouched_when_the_worker_stops(make_bench: Any) -> None:
    bench = make_bench(hang="endless")
    endless, suspect = bench.add("endless", "a b c")
    with bench.database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == suspect).values(attempts=2))
    bench.run(endless)
    bench.wait_running(endless)
    (last,) = bench.run(suspect)
    while bench.service._gate._waiting_alone == 0:
        time.sleep(0.005)
    bench.service.begin_drain()
    assert last.result(20) is False
    assert (bench.rows()[suspect].state, bench.rows()[suspect].attempts) == ("queued", 2)


def test_what_there_is_nothing_to_do_for_is_counted(make_bench: Any) -> None:
    bench = make_bench()
    (job,) = bench.add("a b c")
    assert [bench.service.run_job(i) for i in (job, job, 2**62)] == [True] * 3
    bench.service.count_rejected()
    outcomes = dict.fromkeys(WORKER_OUTCOMES, 0) | {"succeeded": 1}
    assert bench.service.counters == WorkerCounters(
        delivered=3, outcomes=outcomes, void_messages=2, rejected_messages=1
    )


def test_draining_touches_nothing_new_and_hands_back_the_rest(make_bench: Any) -> None:
    bench = make_bench(hang="endless")
    running, waiting = bench.add("endless", "a b c")
    (future,) = bench.run(running)
    bench.wait_running(running)
    bench.service.begin_drain()
    assert bench.service.run_job(waiting) is False
    bench.service.hand_back()
    assert future.result(20) is True
    rows = bench.rows()
    assert [(rows[i].state, rows[i].attempts) for i in (running, waiting)] == [("queued", 0), ("queued", 0)]

    bench.service.resume()
    assert bench.service.run_job(waiting) is True
    assert bench.rows()[waiting].state == "succeeded"


def test_a_hanging_step_does_not_hold_up_the_hand_back(make_bench: Any) -> None:
    bench = make_bench(stall="stuck")
    (job,) = bench.add("stuck")
    (future,) = bench.run(job)
    bench.wait_running(job)
    bench.service.hand_back()
    assert future.result(20) is True
    assert bench.rows()[job].state == "queued"


def test_abandoned_jobs_keep_their_attempt(make_bench: Any) -> None:
    """A worker with a hanging device takes a while to end; what it abandoned must not be handed back meanwhile."""
    bench = make_bench(stall="stuck")
    (job,) = bench.add("stuck")
    (future,) = bench.run(job)
    bench.wait_running(job)
    bench.service.abandon()
    assert future.result(20) is True
    for _ in range(3):
        bench.heartbeat.check_leases()
    bench.writer.submit(lambda _: None).result(20)
    assert (bench.rows()[job].state, bench.rows()[job].attempts) == ("running", 1)


def test_a_cancelled_job_is_dropped(make_bench: Any) -> None:
    bench = make_bench(hang="endless")
    (job,) = bench.add("endless")
    (future,) = bench.run(job)
    bench.wait_running(job)
    bench.heartbeat.check_leases()
    assert not future.done()
    bench.service.cancel_job(job)
    for _ in range(400):
        bench.heartbeat.check_leases()
        if future.done():
            break
        time.sleep(0.01)
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
        assert store.reclaim(c, "me", datetime.now(UTC)).requeued == 1
        claim = store.claim(c, job, worker_id="other", now=datetime.now(UTC))
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
    bench.database.transact(lambda c: store.cancel_job(c, job))
    bench.database.transact(lambda c: store.retry_batch(c, bench.rows()[job].batch_id))
    bench.database.transact(lambda c: store.mark_published(c, [job], datetime.now(UTC)))
    assert bench.service.run_job(job) is True
    bench.heartbeat.check_leases()
    assert future.result(20) is True
    bench.writer.submit(lambda _: None).result(20)
    row = bench.rows()[job]
    assert (row.state, row.published_at) == ("queued", None), "nobody would publish it before the broker is empty"


def test_the_heartbeat_outlives_a_check_that_raises(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench()
    monkeypatch.setattr(heartbeat, "CHECK_SECONDS", 0.01)
    calls: list[None] = []
    twice = threading.Event()

    def check() -> None:
        calls.append(None)
        if len(calls) > 1:
            twice.set()
        raise OSError("no space left on device")

    beating = Heartbeat(bench.database, WORKER, bench.service, [check])
    beating.start()
    assert twice.wait(20)
    beating.stop()


def test_a_revived_worker_registers_again(make_bench: Any) -> None:
    bench = make_bench()
    with bench.database.write() as c:
        store.reclaim(c, "me", datetime.now(UTC))
    bench.heartbeat.beat()
    with bench.database.read() as c:
        assert c.execute(select(workers.c.stopped_at)).scalar_one() is None


def test_a_lease_nobody_works_on_is_handed_back(make_bench: Any) -> None:
    bench = make_bench()
    (job,) = bench.add("a b c")
    with bench.database.write() as c:
        store.claim(c, job, worker_id="me", now=datetime.now(UTC))
    bench.heartbeat.check_leases()
    assert bench.rows()[job].state == "running", "once may be a claim that is just coming in"
    bench.heartbeat.check_leases()
    bench.writer.submit(lambda _: None).result(20)
    assert bench.rows()[job].state == "queued"


def test_a_stored_request_that_makes_no_sense_fails_alone(make_bench: Any) -> None:
    bench = make_bench()
    first, second = bench.add("a b c", "d e f")
    with bench.database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == first).values(request={"prompt": "a", "sampling": 5, "seed": None}))
    assert [future.result(20) for future in bench.run(first, second)] == [True, True]
    assert {i: row.state for i, row in bench.rows().items()} == {first: "failed", second: "succeeded"}


def test_a_result_the_database_refuses_fails_alone(sqlite_database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with sqlite_database.write() as c:
        c.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON results WHEN NEW.output_text LIKE 'secret%' "
            "BEGIN SELECT RAISE(ABORT, 'secret words'); END"
        )
    bench = Bench(sqlite_database)
    ids = bench.add("a b", "secret words", "c d")
    assert [future.result(20) for future in bench.run(*ids)] == [True] * 3
    rows = bench.rows()
    bench.close()
    assert [rows[i].state for i in ids] == ["succeeded", "failed", "succeeded"]
    assert rows[ids[1]].error_code == "engine_error"
    assert "secret" not in rows[ids[1]].error_message
    assert "secret" not in caplog.text


def test_runs_are_recorded(make_bench: Any) -> None:
    bench = make_bench()
    ids = bench.add(*["a b c"] * 12)
    assert all(future.result(20) for future in bench.run(*ids))
    with bench.database.read() as c:
        assert None not in c.execute(select(results.c.run_id)).scalars().all()


def test_threads_are_gone_after_close(database: Database) -> None:
    before = set(threading.enumerate())
    Bench(database).close()
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


def test_log_lines_are_sentences(make_bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="helix_jobs")
    bench = make_bench(fail="poison")
    ids = bench.add("good", "poison")
    for future in bench.run(*ids):
        future.result(20)
    bench.service.begin_drain()
    messages = [record.getMessage() for record in caplog.records]
    assert {message for message in messages if message.startswith("job ended")} == {
        "job ended: succeeded",
        "job ended: failed",
    }
    assert "stopping: no job is running" in messages
    assert counted(1, "job") == "1 job"
    assert counted(0, "job") == "0 jobs"


def test_a_runs_log_line_carries_its_figures(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="helix_jobs")
    totals = RunTotals(steps=4, jobs_finished=1, completion_tokens=10, draft_tokens=8, accepted_tokens=6)
    log_run(3, totals, 2.0)
    (record,) = caplog.records
    assert record.getMessage().startswith("run of 2.0 s: 1 job, 10 tokens, ")
    assert record.figures["run_id"] == 3
    assert (record.figures["jobs_finished"], record.figures["acceptance_rate"]) == (1, 0.75)
