"""Chosen jobs are queued again, with counters that stay right; a condition can do nothing but choose."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select, text, update

from helix_jobs.errors import DatabaseUnreachableError, InputError, NotFoundError
from helix_jobs.storage import chosen_retries
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.changes_in_steps import cancel_batch, retry_batch
from helix_jobs.storage.chosen_retries import retry_chosen
from helix_jobs.storage.database import Database
from helix_jobs.storage.refusals import StoredAnswer, refuse_stored
from helix_jobs.storage.schema import jobs, results
from tests.store_helpers import counts, fail, get_job, must_take, now, register, result_row, stored_batch, succeed


@pytest.fixture
def batch(database):
    """Six jobs: two whole answers, one that breaks its form, two failures, and one that waits."""
    register(database, "w1")
    batch_id, ids = stored_batch(database, 6)
    succeed(database, must_take(database, ids[0]), output_text="it's a: b?", is_valid=True)
    succeed(database, must_take(database, ids[1]), output_text="longer than that", completion_tokens=40)
    succeed(database, must_take(database, ids[2]), output_text='{"a":', is_valid=False, finish_reason="length")
    fail(database, must_take(database, ids[3]), code="deadline")
    fail(database, must_take(database, ids[4]))
    return batch_id, ids


@pytest.fixture(params=[2, 20_000], autouse=True)
def _slices(request, monkeypatch):
    monkeypatch.setattr(chosen_retries, "_SLICE", request.param)


def queued(database, batch_id):
    with database.read() as c:
        query = select(jobs.c.line).where(jobs.c.batch_id == batch_id, jobs.c.state == "queued").order_by(jobs.c.line)
        return list(c.execute(query).scalars())


@pytest.mark.thorough(fast=13)
@pytest.mark.parametrize(
    ("where", "lines"),
    [
        ("error_code = 'deadline'", [4]),
        ("completion_tokens > 30 OR custom_id IN ('c5')", [2, 5]),
        ("output_text LIKE '%a: b?%'", [1]),
        ("output_text = 'it''s a: b?' AND NOT (length(output_text) < 5)", [1]),
        ("state = 'succeeded' AND finish_reason <> 'length'", [1, 2]),
        ("CAST(request ->> 'prompt' AS text) = 'Wörter 5'", [5]),
        ("line = 6", []),
        ("tries > 0", []),
    ],
)
def test_jobs_that_match_are_queued_again(database, batch, where, lines):
    batch_id, ids = batch
    before = queued(database, batch_id)
    assert retry_chosen(database, batch_id, where, invalid=False) == len(lines)
    assert queued(database, batch_id) == sorted({*before, *lines})
    counts(database, batch_id)
    with database.read() as c:
        left = c.execute(select(func.count()).select_from(results)).scalar_one()
        assert left == 3 - len({*lines} & {1, 2, 3})
        for line in lines:
            job = get_job(c, ids[line - 1])
            # An answered one has used a try, so that its next seed is another; a failed one begins anew.
            assert (job.tries, job.attempts, job.error_code) == (1 if line <= 3 else 0, 0, None)


def test_answers_that_break_their_form(database, batch):
    batch_id, ids = batch
    assert retry_chosen(database, batch_id, "line > 3", invalid=True) == 0
    assert retry_chosen(database, batch_id, None, invalid=True) == 1
    assert queued(database, batch_id) == [3, 6]
    assert succeed(database, must_take(database, ids[2]), is_valid=True)
    assert retry_chosen(database, batch_id, None, invalid=True) == 0


def test_a_job_of_several_answers_is_queued_once(database):
    from helix_jobs.storage import claims
    from tests.store_helpers import ended

    register(database, "w1")
    batch_id, (job_id,) = stored_batch(database, 1)
    done = ended(must_take(database, job_id))
    with database.write() as c:
        claims.finish_succeeded(c, done, [result_row(), result_row(choice=1, is_valid=False)], now())
    assert retry_chosen(database, batch_id, None, invalid=True) == 1
    with database.read() as c:
        assert c.execute(select(func.count()).select_from(results)).scalar_one() == 0


def meanwhile(monkeypatch, database, statement):
    """Something happens after the jobs are found and before the first is queued."""
    begin = chosen_retries.begin_retry

    def late(*arguments):
        begun = begin(*arguments)
        with database.write() as c:
            c.execute(text(statement))
        return begun

    monkeypatch.setattr(chosen_retries, "begin_retry", late)


@pytest.mark.parametrize("condition", ["line IN (1, 2)", "line IN (4, 5)"])
def test_what_became_of_a_job_since_stays(database, batch, monkeypatch, condition):
    batch_id, _ = batch
    meanwhile(monkeypatch, database, "UPDATE jobs SET finished_at = claimed_at WHERE line IN (1, 4)")
    assert retry_chosen(database, batch_id, condition, invalid=False) == 1
    assert queued(database, batch_id) == [2 if "1" in condition else 5, 6]
    counts(database, batch_id)


def test_a_refused_answer_that_was_kept_goes_with_its_failure(database, batch):
    batch_id, ids = batch
    kept = [StoredAnswer(ids[0], ended_at(database, ids[0]))]
    with database.write() as c:
        assert refuse_stored(c, batch_id, kept, max_tries=1, reason="too short", now=now())
    assert retry_chosen(database, batch_id, "error_code = 'not_accepted'", invalid=False) == 1
    assert queued(database, batch_id) == [1, 6]
    counts(database, batch_id)
    with database.read() as c:
        assert get_job(c, ids[0]).tries == 0
        assert c.execute(select(func.count()).select_from(results)).scalar_one() == 2


def test_an_answer_that_was_to_be_another_one_stays_so_when_its_job_fails_and_is_retried(database, batch):
    batch_id, ids = batch
    for failed in (False, True):
        assert retry_chosen(database, batch_id, "output_text IS NOT NULL", invalid=False) == 3 - failed
        fail(database, must_take(database, ids[0]))
        assert retry_batch(database, batch_id) == 3 - 2 * failed
        with database.read() as c:
            assert get_job(c, ids[0]).tries == 1, "it takes no stored answer, and draws from another seed"
        counts(database, batch_id)
        for job_id in ids[1:3]:
            succeed(database, must_take(database, job_id))


def ended_at(database, job_id):
    with database.read() as c:
        return c.execute(select(jobs.c.finished_at).where(jobs.c.id == job_id)).scalar_one()


def test_a_cancelled_batch_goes_on_with_the_chosen_jobs(database, batch):
    batch_id, _ = batch
    cancel_batch(database, batch_id)
    assert retry_chosen(database, batch_id, "line <= 2", invalid=False) == 2
    assert queued(database, batch_id) == [1, 2]
    assert counts(database, batch_id) == {"queued": 2, "succeeded": 1, "failed": 2, "cancelled": 1}


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_a_cancel_meanwhile_ends_it(database, batch, monkeypatch, state):
    batch_id, _ = batch
    monkeypatch.setattr(chosen_retries, "_STEP", 1)
    meanwhile(monkeypatch, database, "UPDATE batches SET cancelled_at = created_at")
    steps = []
    queue = chosen_retries.queue_chosen
    monkeypatch.setattr(chosen_retries, "queue_chosen", lambda *given: steps.append(queue(*given)) or steps[-1])
    assert retry_chosen(database, batch_id, f"state = '{state}'", invalid=False) == 0
    assert steps == [None]


def test_a_condition_that_cannot_be_decided_for_a_late_row_changes_nothing(database, batch):
    batch_id, _ = batch
    before = counts(database, batch_id)
    overflows = "abs(CASE WHEN line = 5 THEN -9223372036854775807 - 1 ELSE line END) > 0"
    with pytest.raises(InputError, match="the database cannot decide the condition"):
        retry_chosen(database, batch_id, overflows, invalid=False)
    assert counts(database, batch_id) == before


def test_a_database_that_is_lost_on_the_way_says_how_many_are_queued(database, batch, monkeypatch):
    batch_id, _ = batch
    monkeypatch.setattr(chosen_retries, "_STEP", 2)
    queue = chosen_retries.queue_chosen

    def lost(c, change, chosen, now):
        if len(chosen) == 1:
            raise DatabaseUnreachableError("the database does not answer")
        return queue(c, change, chosen, now)

    monkeypatch.setattr(chosen_retries, "queue_chosen", lost)
    with pytest.raises(DatabaseUnreachableError, match=r"does not answer; 4 jobs of 5 queued again before"):
        retry_chosen(database, batch_id, "line > 0", invalid=False)
    assert queued(database, batch_id) == [1, 2, 3, 4, 6]


REFUSED = "the database cannot decide the condition"


@pytest.mark.thorough(fast=21)
@pytest.mark.parametrize(
    ("where", "sqlite", "postgres"),
    [
        # The same on both.
        ("line = 1 AND lower(output_text) LIKE 'it%'", 1, 1),
        ("line = 1 AND finished_at > '2026-03-01 12:00:00' AND finished_at < '2026-03-01 12:00:01'", 1, 1),
        ("line = 1 AND finished_at BETWEEN '2026-03-01' AND '2026-03-02'", 1, 1),
        ("line = 1 AND round(CAST(total_seconds AS numeric), 2) = 2.35", 1, 1),
        ("line = 2 AND is_valid IS NULL AND completion_tokens / 3 = 13", 1, 1),
        # What the documentation says of each.
        ("line = 1 AND output_text LIKE 'IT%'", 1, 0),
        ("line = 1 AND finished_at > '2026-03-01T12:00:00'", 0, 1),
        ("line = 1 AND finished_at > '2026-03-01 13:00:00+02'", 0, 1),
        ("line = 1 AND round(total_seconds, 2) = 2.35", 1, REFUSED),
        ("line = 1 AND CAST(total_seconds + 0.4 AS integer) = 3", 0, 1),
        ("line = 1 AND completion_tokens / 0 IS NULL", 1, REFUSED),
        ("line = 1 AND CAST(output_text AS integer) = 0", 1, REFUSED),
        ("line = 1 AND is_valid = 1", 1, REFUSED),
    ],
)
def test_what_a_condition_means_on_each_database(database, batch, where, sqlite, postgres):
    batch_id, ids = batch
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == ids[0]).values(finished_at=datetime(2026, 3, 1, 12, 0, 0, 5, UTC)))
        c.execute(update(results).where(results.c.job_id == ids[0]).values(total_seconds=2.346))
    expected = sqlite if database.dialect == "sqlite" else postgres
    if isinstance(expected, int):
        assert retry_chosen(database, batch_id, where, invalid=False) == expected
    else:
        with pytest.raises(InputError, match=expected):
            retry_chosen(database, batch_id, where, invalid=False)


@pytest.mark.postgres
@pytest.mark.parametrize("where", ["finished_at < '2026-03-01 12:00:01'", r"length('\\') = 2"])
def test_the_settings_of_a_postgres_role_change_no_condition(postgres_database, where):
    batch_id, (job_id,) = stored_batch(postgres_database, 1)
    with postgres_database.write() as c:
        noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
        c.execute(update(jobs).where(jobs.c.id == job_id).values(state="cancelled", finished_at=noon))
        counters.recount(c, batch_id)
    settings = "-cTimeZone=Asia/Tokyo -cstandard_conforming_strings=off"
    url = postgres_database.url.update_query_dict({"options": settings})
    elsewhere = Database(url.render_as_string(hide_password=False))
    assert retry_chosen(elsewhere, batch_id, where, invalid=False) == 1
    elsewhere.dispose()


@pytest.mark.thorough(fast=14)
@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("", "is empty"),
        ("1 = 1; DELETE FROM jobs", "has ';' at character 6"),
        ("1 = 1) OR (1 = 1", "closes a parenthesis"),
        ("(1 = 1", "does not close"),
        ("1 = 1 -- rest", "comment"),
        ("1 = 1 /* rest */", "comment"),
        ("line IN (SELECT line FROM jobs)", "no column SELECT"),
        ("pg_sleep(9) IS NULL", "calls pg_sleep"),
        ("load_extension('x') = 1", "calls load_extension"),
        ("custom_id = $$x$$", "has '$' at character 13"),
        ("custom_id = E'\\'' OR 1 = 1", "letters right before a quote"),
        ('"line" = 1', "has '\"' at character 1"),
        ("line::text = 'x'", "has ':' at character 5"),
        ("prize > 3", "no column prize; the columns are "),
        ("lease > 3", "no column lease"),
        ("x" * 5000, "5,000 characters"),
        ("line = 'a' 'b' 'c' =", "the database cannot decide the condition"),
        ("line =", "the database cannot decide the condition"),
    ],
)
def test_what_is_no_condition_is_refused_and_changes_nothing(database, batch, where, reason):
    batch_id, _ = batch
    cancel_batch(database, batch_id)
    before = counts(database, batch_id)
    with pytest.raises(InputError) as caught:
        retry_chosen(database, batch_id, where, invalid=False)
    assert reason in str(caught.value)
    assert counts(database, batch_id) == before


def test_no_such_batch(database):
    with pytest.raises(NotFoundError):
        retry_chosen(database, "b-none", "line = 1", invalid=False)
