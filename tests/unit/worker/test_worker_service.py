"""The service with a real database, a real writer and the fake engine."""

from __future__ import annotations

import errno
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from helix_jobs.errors import EngineError, ExhaustedError
from helix_jobs.storage import batch_changes
from helix_jobs.storage.schema import jobs, results
from helix_jobs.worker.counters import WORKER_OUTCOMES, WorkerCounters
from tests.store_helpers import now
from tests.unit.worker.service_bench import Bench
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database


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


def test_a_result_says_how_much_of_its_prompt_was_dropped(make_bench: Any) -> None:
    bench = make_bench()
    words = {"prompt": "a b c d e", "sampling": {}, "seed": 1}
    whole, cut = bench.add_raw(words, {**words, "truncate_prompt": {"keep": "start_and_end", "tokens": 3}})
    assert all(future.result(20) for future in bench.run(whole, cut))
    with bench.database.read() as c:
        rows = c.execute(select(results).order_by(results.c.job_id)).all()
    assert [(row.output_text, row.prompt_tokens, row.dropped_prompt_tokens) for row in rows] == [
        ("a b c d e", 5, None),
        ("a d e", 3, 2),
    ]


def test_all_choices_are_written_or_none(make_bench: Any) -> None:
    bench = make_bench(fail="bad")
    sampling = {"n": 3, "temperature": 1.0}
    good, bad = bench.add_raw(*({"prompt": text, "sampling": sampling, "seed": 1} for text in ("a b c", "bad one")))
    assert [future.result(20) for future in bench.run(good, bad)] == [True] * 2
    assert [bench.rows()[i].state for i in (good, bad)] == ["succeeded", "failed"]
    with bench.database.read() as c:
        found = c.execute(select(results).order_by(results.c.choice)).all()
    assert [(row.job_id, row.choice, row.output_text, row.prompt_tokens) for row in found] == [
        (good, 0, "a b c", 3),
        (good, 1, "b c a", 0),
        (good, 2, "c a b", 0),
    ]
    assert len({row.run_id for row in found}) == 1
    assert bench.service.counters.outcomes["succeeded"] == 1


def test_jobs_that_the_engine_computes_are_not_stuck(make_bench: Any) -> None:
    bench = make_bench(hang="endless")
    endless, other = bench.add("endless", "a b c")
    assert bench.service.stuck == 0
    held = threading.Event()
    bench.writer.submit(lambda _: held.wait(20))
    bench.run(endless, other)
    wait_until(lambda: bench.service.active_count == 2, "they are not taken")
    assert bench.service.stuck == 2
    held.set()
    bench.wait_running(endless)
    wait_until(lambda: not bench.service.stuck, "the engine has none of them")
    bench.service.begin_drain()
    assert bench.service.stuck == 0


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
    wait_until(lambda: bench.time.waiting == 1, "it does not wait to run alone")
    others = bench.run(third, twice_lost)
    wait_until(lambda: bench.time.waiting == 3, "they do not wait for it")
    assert {i: (row.state, row.attempts) for i, row in bench.rows().items()} == {
        endless: ("running", 1),
        suspect: ("queued", 2),
        third: ("queued", 0),
        twice_lost: ("queued", 2),
    }
    bench.database.transact(lambda c: batch_changes.cancel_job(c, endless, now=now()))
    bench.heartbeat.check_leases()
    assert running.result(20)
    bench.wait_running(suspect)
    assert bench.time.waiting == 2
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
    wait_until(lambda: bench.time.waiting == 1, "it does not wait to run alone")
    assert bench.service.kept_waiting == 1
    bench.service.begin_drain()
    assert last.result(20) is False
    assert (bench.rows()[suspect].state, bench.rows()[suspect].attempts) == ("queued", 2)


def test_a_job_that_is_put_off_is_told_once_however_often_its_message_comes(
    make_bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Reconciler and audit send its message again and again, for a worker that may have room for it."""
    bench = make_bench(hang="endless")
    endless, suspect = bench.add("endless", "a b c")
    with bench.database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == suspect).values(attempts=2))
    bench.run(endless)
    bench.wait_running(endless)
    (first,) = bench.run(suspect)
    wait_until(lambda: bench.time.waiting == 1, "it does not wait to run alone")
    bench.time.advance(300.0)
    assert first.result(20)
    assert [bench.run(suspect)[0].result(20) for _ in range(2)] == [True] * 2
    assert bench.service.counters.postponed == 1
    assert bench.service.kept_waiting == 1
    assert sum("cannot run alone" in record.getMessage() for record in caplog.records) == 1
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


def test_a_job_that_is_handed_back_while_it_is_encoded_is_queued_whatever_encoding_says(make_bench: Any) -> None:
    """A worker that stops ends the process that encodes, too: no failure of the job."""
    bench = make_bench()
    (job,) = bench.add("a b c")
    encoding, ended = threading.Event(), threading.Event()

    def encode(_: Any) -> Any:
        encoding.set()
        ended.wait(20)
        raise EngineError("the process that tokenises prompts ended with SIGKILL")

    bench.engine.encode = encode
    (running,) = bench.run(job)
    assert encoding.wait(20)
    bench.service.hand_back()
    ended.set()
    assert running.result(20)
    row = bench.rows()[job]
    assert (row.state, row.error_code) == ("queued", None)


def test_a_job_that_is_cancelled_while_it_is_encoded_is_not_computed(make_bench: Any) -> None:
    bench = make_bench(hang="endless")
    cancelled, next_one = bench.add("endless", "a b c")
    encode, encoding, go_on = bench.engine.encode, threading.Event(), threading.Event()

    def encode_slowly(request: Any) -> Any:
        encoding.set()
        go_on.wait(20)
        return encode(request)

    bench.engine.encode = encode_slowly
    (running,) = bench.run(cancelled)
    assert encoding.wait(20)
    bench.database.transact(lambda c: batch_changes.cancel_job(c, cancelled, now=now()))
    bench.heartbeat.check_leases()
    go_on.set()
    assert running.result(20)
    assert bench.service.run_job(next_one)
    assert bench.service.engine.request_count == 0
    assert bench.rows()[cancelled].state == "cancelled"


def test_a_job_that_is_withdrawn_as_it_comes_to_the_engine_is_not_computed(make_bench: Any) -> None:
    """The abort stands in the engine's inbox when the request comes there, behind it."""
    bench = make_bench(hang="endless")
    withdrawn, next_one = bench.add("endless", "a b c")
    engine = bench.service.engine
    submit, abort, aborted, submitted = engine.submit, engine.abort, threading.Event(), threading.Event()

    def submit_late(request: Any, settle: Any) -> None:
        threading.Thread(target=bench.service.hand_back).start()
        assert aborted.wait(20)
        submit(request, settle)
        submitted.set()

    def abort_early(request_id: str) -> None:
        abort(request_id)
        aborted.set()
        assert submitted.wait(20)

    engine.submit, engine.abort = submit_late, abort_early
    (running,) = bench.run(withdrawn)
    assert running.result(20)
    engine.submit, engine.abort = submit, abort
    bench.service.resume()
    assert bench.service.run_job(next_one)
    assert engine.request_count == 0
    assert (bench.rows()[withdrawn].state, bench.rows()[withdrawn].attempts) == ("queued", 0)


@pytest.mark.parametrize("moment", ["claimed", "encoded"])
def test_a_job_that_is_terminated_before_the_engine_has_it_is_not_computed(make_bench: Any, moment: str) -> None:
    """Celery's ``terminate``: the job returns to the queue."""
    bench = make_bench(hang="endless")
    (job,) = bench.add("endless")
    encode, held = bench.engine.encode, threading.Event()

    def encode_slowly(request: Any) -> Any:
        held.wait(20)
        return encode(request)

    if moment == "claimed":
        bench.writer.submit(lambda _: held.wait(20))
    else:
        bench.engine.encode = encode_slowly
    (running,) = bench.run(job)
    if moment == "encoded":
        bench.wait_running(job)
    else:
        wait_until(lambda: bench.service.active_count, "it is not taken")
    bench.service.abort_job(job)
    held.set()
    assert running.result(20)
    assert (bench.rows()[job].state, bench.rows()[job].attempts) == ("queued", 0)


def test_a_job_that_meets_the_limit_of_descriptors_is_handed_back(make_bench: Any) -> None:
    """While it is encoded: no failure of the job, and no attempt."""
    bench = make_bench(encode_patience=0.0)
    (job,) = bench.add("a b c")

    def encode(_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    bench.engine.encode = encode
    bench.when_broken = bench.service.hand_back
    (running,) = bench.run(job)
    assert running.result(20)
    row = bench.rows()[job]
    assert (row.state, row.error_code, row.attempts) == ("queued", None, 0)
    assert [type(error) for error in bench.broken] == [ExhaustedError]
