"""The store under histories that hypothesis makes up, and that a store with a fault in it does not stand them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import BigInteger, exists, text

from helix_jobs.storage import answer_cache, batch_changes, claims, pausing, publishing, refusals
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.schema import batches, jobs
from tests.acceptance.store_machine import StoreMachine

QUICK = settings(
    max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
LONG_HISTORIES = 2000


def run(database, chosen):
    run_state_machine_as_test(lambda: StoreMachine(database), settings=chosen)


@pytest.mark.thorough(fast=1)
def test_the_store_does_what_its_model_does(database):
    run(database, QUICK)


@pytest.mark.slow
def test_the_store_does_what_its_model_does_for_long(database):
    run(database, settings(QUICK, max_examples=LONG_HISTORIES, stateful_step_count=60))


def _without(statement, *columns):
    """The statement without its conditions on these columns."""
    criteria = statement._where_criteria
    kept = [clause for clause in criteria if not str(clause).startswith(columns)]
    assert len(kept) == len(criteria) - len(columns)
    weaker = statement.where()  # a copy
    weaker._where_criteria = tuple(kept)
    return weaker


def _finish_without_fence(monkeypatch):
    monkeypatch.setattr(claims, "_FINISH", _without(claims._FINISH, "jobs.lease", "jobs.worker_id"))


def _release_without_fence(monkeypatch):
    monkeypatch.setattr(claims, "_RELEASE", _without(claims._RELEASE, "jobs.lease", "jobs.worker_id"))


def _give_back_without_fence(monkeypatch):
    planted = _without(claims._GIVE_BACK_UNLESS_LAST, "jobs.lease", "jobs.worker_id")
    monkeypatch.setattr(claims, "_GIVE_BACK_UNLESS_LAST", planted)


def _refuse_without_fence(monkeypatch):
    monkeypatch.setattr(claims, "_REFUSE", _without(claims._REFUSE, "jobs.lease", "jobs.worker_id"))


def _nothing(batch, writer):
    return counters.Share(batch_id=batch, writer=writer, outcome="stored", jobs=0)


def _refusals_are_not_counted(monkeypatch):
    monkeypatch.setattr(counters, "refusals", lambda batch, writer, _: _nothing(batch, writer))


def _a_refused_answer_may_be_an_older_one(monkeypatch):
    monkeypatch.setattr(refusals, "_named_answer", lambda this_job, _: this_job)


def _retry_keeps_refused_answers(monkeypatch):
    monkeypatch.setattr(batch_changes, "_forget_refusals", lambda *_: None)


def _claim_keeps_the_lease(monkeypatch):
    monkeypatch.setattr(claims, "_CLAIM", claims._CLAIM.values(lease=jobs.c.lease))


def _claim_of_what_runs(monkeypatch):
    monkeypatch.setattr(claims, "_CLAIM", _without(claims._CLAIM, "jobs.state"))


def _cancel_is_not_counted(monkeypatch):
    monkeypatch.setattr(batch_changes, "_count_cancelled", lambda *_: None)


def _mark_of_what_runs(monkeypatch):
    plain = text("UPDATE jobs SET published_at = :now WHERE id IN (SELECT value FROM json_each(:ids))")
    monkeypatch.setitem(publishing._MARK, "sqlite", plain.bindparams(publishing._NOW))


def _claim_in_a_pause(monkeypatch):
    takes_jobs = exists().where(
        batches.c.id == jobs.c.batch_id, batches.c.total.is_not(None), batches.c.cancelled_at.is_(None)
    )
    monkeypatch.setattr(claims, "_CLAIM", _without(claims._CLAIM, "EXISTS").where(takes_jobs))


def _pause_remembers_messages(monkeypatch):
    """A delivery within the pause leads to nothing, and nobody sends the job again."""
    monkeypatch.setattr(pausing, "text", lambda _: text("1 = 0"))


def _a_take_keeps_the_lease_and_takes_what_runs(monkeypatch):
    plain = str(answer_cache._PAIRS["sqlite"]).replace("j.state = 'queued' AND j.tries = 0 AND", "")
    columns = {"job_id": BigInteger, "source": BigInteger}
    monkeypatch.setitem(answer_cache._PAIRS, "sqlite", text(plain).columns(**columns))


def _answers_of_any_setup_are_taken(monkeypatch):
    plain = str(answer_cache._PAIRS["sqlite"]).replace("s.setup_key BETWEEN :low AND :high AND", "")
    columns = {"job_id": BigInteger, "source": BigInteger}
    monkeypatch.setitem(answer_cache._PAIRS, "sqlite", text(plain).columns(**columns))


def _taken_answers_count_as_computed(monkeypatch):
    monkeypatch.setattr(answer_cache, "_shares", lambda *_: [])


FAULTS = [
    _finish_without_fence,
    _release_without_fence,
    _give_back_without_fence,
    _refuse_without_fence,
    _refusals_are_not_counted,
    _a_refused_answer_may_be_an_older_one,
    _retry_keeps_refused_answers,
    _claim_keeps_the_lease,
    _claim_of_what_runs,
    _cancel_is_not_counted,
    _mark_of_what_runs,
    _claim_in_a_pause,
    _pause_remembers_messages,
    _a_take_keeps_the_lease_and_takes_what_runs,
    _answers_of_any_setup_are_taken,
    _taken_answers_count_as_computed,
]


def short_history(machine):
    """Steps any of which one of the faults spoils."""
    for step in (
        lambda: machine.begin_with_a_batch(2, "plain"),
        lambda: machine.send(5),
        lambda: machine.deliver_what_waits(0, "w1", "unanswered"),
        lambda: machine.mark("mark", 0, "plain"),
        lambda: machine.deliver(0, "w2", "plain"),
        lambda: machine.deliver(1, "w2", "plain"),
        lambda: machine.take_over(0, "lost", "w1", "plain"),
        lambda: machine.write_late(0, "released", "", "plain"),
        lambda: machine.write_late(0, "refused", "", "plain"),
        lambda: machine.write_late(0, "succeeded", "", "plain"),
        lambda: machine.take_over(1, "lost", "w2", "plain"),
        lambda: machine.write_late(0, "given back", "", "plain"),  # a job with an attempt left
        lambda: machine.end([0], "refused", "", "unanswered"),
        lambda: machine.deliver_what_waits(0, "w2", "plain"),
        lambda: machine.end([0], "not accepted", "", "unanswered"),
        lambda: machine.retry(0, "plain"),
        lambda: machine.deliver_what_waits(0, "w2", "plain"),
        lambda: machine.end([0], "succeeded", "", "unanswered"),
        machine.look_at_answers,
        lambda: machine.refuse_what_was_seen(0, 3, "unanswered"),
        lambda: machine.deliver_what_waits(0, "w1", "plain"),
        lambda: machine.end([0], "succeeded", "", "unanswered"),
        lambda: machine.refuse_what_was_seen(0, 3, "plain"),
        machine.look_at_answers,
        lambda: machine.refuse_what_was_seen(0, 2, "unanswered"),
        lambda: machine.retry(0, "plain"),
        lambda: machine.send(5),
        lambda: machine.mark("mark", 0, "plain"),
        lambda: machine.pause(0, resumed=False, commit="unanswered"),
        lambda: machine.deliver(0, "w1", "plain"),
        lambda: machine.pause(0, resumed=True, commit="unanswered"),
        lambda: machine.deliver_what_waits(0, "w1", "plain"),
        lambda: machine.cancel(0, one_job=False, commit="rolled back"),
        lambda: machine.end([0], "released", "", "plain"),
        # Lines 1 and 3 of another batch ask for the same, line 1 of this one, too.
        lambda: machine.create(None, "plain"),
        lambda: machine.add_lines(1, 1, 3, sealed=True, commit="plain"),
        lambda: machine.deliver(2, "w1", "plain"),
        lambda: machine.deliver_to_one_who_may_take(4, "w1", "unanswered"),
        lambda: machine.end([0], "succeeded", "", "plain"),
        lambda: machine.take([4], "w2", "plain"),
        lambda: machine.deliver(4, "w2", "plain"),
        lambda: machine.take([4], "w1", "plain"),
        lambda: machine.end([0], "released", "", "plain"),
        lambda: machine.take([2, 3, 4], "w1", "unanswered"),
    ):
        step()
        machine.rows_are_as_the_model_says()


def test_a_job_to_be_answered_anew_stays_so_when_it_is_cancelled_and_retried(database):
    machine = StoreMachine(database)
    machine.begin_with_a_batch(1, "plain")
    for step in (
        lambda: machine.deliver_what_waits(0, "w1", "plain"),
        lambda: machine.end([0], "succeeded", "", "plain"),
        lambda: machine.retry_one(0, "plain"),
        lambda: machine.deliver_what_waits(0, "w1", "plain"),
        lambda: machine.take_over(0, "cancelled", "w1", "plain"),
        lambda: machine.end([0], "failed", "engine_error", "plain"),
        lambda: machine.retry(0, "plain"),
    ):
        step()
        machine.rows_are_as_the_model_says()
    (job, *_) = machine.model.jobs.values()
    assert (job.state, job.tries) == ("queued", 1)


def test_a_job_at_its_last_attempt_is_not_given_back(database):
    machine = StoreMachine(database)
    machine.begin_with_a_batch(1, "plain")
    for _ in range(2):  # the job of line 1 may have two attempts
        machine.deliver_what_waits(0, "w1", "plain")
        machine.end([0], "given back", "", "unanswered")
        machine.rows_are_as_the_model_says()
    assert machine.model.jobs[machine.job_ids[0]].state == "running"


def test_the_store_stands_the_history_of_the_negative_controls(database):
    short_history(StoreMachine(database))


@pytest.mark.thorough(fast=5)
@pytest.mark.parametrize("fault", FAULTS)
def test_negative_control_a_faulty_store_is_found_out(sqlite_database, monkeypatch, fault):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        short_history(StoreMachine(sqlite_database))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_negative_control_hypothesis_finds_the_fault_by_itself(sqlite_database, monkeypatch, fault):
    fault(monkeypatch)
    # The first history that fails is enough.
    chosen = settings(QUICK, max_examples=3000, database=None, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run(sqlite_database, chosen)
