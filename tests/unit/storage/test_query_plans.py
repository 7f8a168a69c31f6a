"""What is polled each second must not walk a batch: SQLite tells how it would find the rows."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import event, text

from helix_jobs.storage import (
    answer_cache,
    answer_list,
    batch_changes,
    batch_news,
    braking,
    claims,
    publishing,
    purging,
    queue_figures,
    readable,
    results,
    retries,
    schema,
    seen_batches,
    status,
    workers,
)
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.answer_cache import AnswerSetup
from helix_jobs.storage.answer_records import AnswerFilter, AnswerMark, AnswerOrder, AnswerQuery, Effort
from helix_jobs.storage.changes_in_steps import ROWS
from helix_jobs.storage.purging import EndedBatch
from helix_jobs.storage.records import FinishedJob
from helix_jobs.storage.states import RUNNABLE_STATES, JobState
from tests.store_helpers import must_take, now, register, stored_batch
from tests.varied_batches import varied_batch_of

ENDED = {
    "name": None,
    "total": 3,
    "stored": 3,
    "succeeded": 0,
    "failed": 1,
    "cancelled": 0,
    "ended_at": now(),
}
SETUP = AnswerSetup("a", "a", "a")
POLLED = {
    "batch_status": (status.batch_status, {"ix_jobs_running"}),
    "list_batches": (lambda c, _: status.list_batches(c), {"ix_jobs_running"}),
    "publishable": (lambda c, _: publishing.publishable(c, 10), {"ix_jobs_unpublished"}),
    # Each job is looked up by its key: whether an equal one is under way, and whether one has an answer.
    "publishable without twins": (
        lambda c, _: publishing.publishable(c, 10, without_twins=True),
        {"ix_jobs_unpublished", "ix_jobs_under_way"},
    ),
    "has_answers": (lambda c, _: answer_cache.has_answers(c, [1, 2], SETUP), {"PRIMARY KEY", "ix_jobs_answers"}),
    "claim": (
        lambda c, _: claims.claim(c, 1, worker_id="w1", now=now(), setup=SETUP),
        {"PRIMARY KEY", "ix_jobs_answers", "ix_jobs_under_way"},
    ),
    "leave_to_twin": (lambda c, _: answer_cache.leave_to_twin(c, 1), {"PRIMARY KEY", "ix_jobs_under_way"}),
    "published_queued": (lambda c, _: len(publishing.published_queued(c)), {"ix_jobs_published"}),
    "latest_published_at": (lambda c, _: publishing.latest_published_at(c), {"ix_jobs_published"}),
    "republish_all": (lambda c, _: publishing.republish_all(c), {"ix_jobs_published"}),
    "republish_last_attempts": (lambda c, _: publishing.republish_last_attempts(c, now()), {"ix_jobs_published"}),
    "republish_unseen": (lambda c, _: publishing.republish_unseen(c, now()), {"ix_jobs_published"}),
    "backlog": (lambda c, _: publishing.backlog(c), {"ix_jobs_running"}),
    "queue_figures": (
        lambda c, _: queue_figures.queue_figures(c),
        {"ix_jobs_running", "ix_jobs_published", "ix_jobs_unpublished", "PRIMARY KEY"},
    ),
    # The board of the page. Its batches are found by their ids and by their moments.
    "current_ids": (lambda c, _: seen_batches.current_ids(c, 10), {"ix_jobs_running"}),
    "held_leases": (lambda c, _: claims.held_leases(c, "w1"), {"ix_jobs_running"}),
    "worker_heartbeats": (lambda c, _: workers.worker_heartbeats(c), {"ix_jobs_running"}),
    "reclaim": (lambda c, _: retries.reclaim(c, "w1", now()), {"ix_jobs_running"}),
    # By lines, some thousand at a time: the index over the lines of a state, or the unique one over batch and line.
    "retry_jobs": (
        lambda c, batch_id: batch_changes.retry_jobs(
            c,
            batch_changes.begin_retry(c, batch_id),
            [batch_changes.EndedJob(number, JobState.FAILED, now()) for number in (1, 2)],
            now=now(),
        ),
        {"PRIMARY KEY"},
    ),
    "retry_lines": (
        lambda c, batch_id: batch_changes.retry_lines(c, batch_changes.begin_retry(c, batch_id), 0, 2, now=now()),
        {"ix_jobs_unsuccessful", "sqlite_autoindex_jobs_2"},
    ),
    "next_lines": (
        lambda c, batch_id: batch_changes.next_lines(c, batch_id, {JobState.FAILED}, 0, 2),
        {"sqlite_autoindex_jobs_2"},
    ),
    # The newest line of an unfinished submission.
    "ended_batches": (lambda c, _: purging.ended_batches(c), {"sqlite_autoindex_jobs_2"}),
    "begin_purge": (
        lambda c, batch_id: purging.begin_purge(c, EndedBatch(id=batch_id, **ENDED), now()),
        {"sqlite_autoindex_jobs_2", "ix_jobs_running", "ix_jobs_published", "ix_jobs_unpublished"},
    ),
    "purge_lines": (
        # As if the purge had begun: its lines are looked for only then.
        lambda c, batch_id: (
            c.execute(text("UPDATE batches SET total = NULL, cancelled_at = created_at")),
            purging.last_line(c, batch_id, 0, 2),
            purging.purge_lines(c, batch_id, 0, 2),
        ),
        {"sqlite_autoindex_jobs_2"},
    ),
    "purge_workers": (lambda c, _: purging.purge_workers(c, now(), 10), {"ix_jobs_running"}),
    "by completion": (
        lambda c, batch_id: list(results.iter_results(c, batch_id, order="completion")),
        {"ix_jobs_completion"},
    ),
    # A page of a list finds its rows, and then reads these alone by their keys.
    **{
        f"a list of {name}": (
            lambda c, batch_id, query=query: answer_list.list_answers(c, batch_id, query),
            {index, "PRIMARY KEY"},
        )
        for name, query, index in (
            ("all", AnswerQuery(after="1"), "sqlite_autoindex_jobs_2"),
            ("the end", AnswerQuery(before="9"), "sqlite_autoindex_jobs_2"),
            ("what was cut off", AnswerQuery(which=AnswerFilter(finish_reason="length")), "sqlite_autoindex_jobs_2"),
            ("what has a text", AnswerQuery(which=AnswerFilter(text="late")), "sqlite_autoindex_jobs_2"),
            ("the newest", AnswerQuery(order=AnswerOrder.NEWEST, after="9000000000000000-1"), "ix_jobs_completion"),
            (
                "the newest that thought",
                AnswerQuery(which=AnswerFilter(mark=AnswerMark.THOUGHT), order=AnswerOrder.NEWEST),
                "ix_jobs_completion",
            ),
            ("failures", AnswerQuery(which=AnswerFilter(state=JobState.FAILED), after="0"), "ix_jobs_unsuccessful"),
            ("a code", AnswerQuery(which=AnswerFilter(error_code="deadline")), "ix_jobs_unsuccessful"),
            ("what runs", AnswerQuery(which=AnswerFilter(state=JobState.RUNNING)), "ix_jobs_running"),
        )
    },
}


@pytest.mark.parametrize("name", POLLED)
def test_polled_queries_use_their_small_index(sqlite_database, name):
    call, expected = POLLED[name]
    register(sqlite_database, "w1")
    batch_id, ids = stored_batch(sqlite_database, 3)
    claimed = must_take(sqlite_database, ids[0])
    with sqlite_database.write() as c:
        claims.finish_failed(c, FinishedJob(claimed.id, claimed.lease, "w1"), "deadline", "late", now())
    statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        if re.search(r"\bjobs\b", statement) and not statement.startswith("EXPLAIN"):
            statements.append((statement, parameters))

    with sqlite_database.write() as c:
        event.listen(c, "before_cursor_execute", note)
        call(c, batch_id)
    plans = []
    with sqlite_database.read() as c:
        for statement, parameters in statements:
            plan = c.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans += [row[3] for row in plan if re.search(r"\b(jobs|[jsu])\b", row[3])]
    assert plans
    for plan in plans:
        used = re.search(r"INDEX (\w+)|INTEGER (PRIMARY KEY)", plan)
        assert used is not None, plan
        assert (used[1] or used[2]) in expected, plan


@pytest.mark.postgres
def test_a_lane_is_read_in_order_from_its_index_on_postgres(postgres_database):
    batch_id, _ = stored_batch(postgres_database, 2000)
    with postgres_database.write() as c:
        plan = c.execute(
            text(
                "EXPLAIN SELECT id FROM jobs WHERE batch_id = :batch AND priority = 0 AND state = 'queued' "
                "AND published_at IS NULL AND id > 0 ORDER BY id LIMIT 10"
            ),
            {"batch": batch_id},
        ).scalars()
        assert "ix_jobs_unpublished" in "\n".join(plan)


@pytest.mark.postgres
def test_chosen_failures_are_found_by_their_ids_though_postgres_knows_nothing_of_the_table(postgres_database):
    batch_id, _ = stored_batch(postgres_database, 2000)
    statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith("UPDATE jobs"):
            statements.append((statement, parameters))

    with postgres_database.write() as c:
        c.execute(text("UPDATE jobs SET state = 'failed', error_code = 'deadline', finished_at = queued_at"))
        counters.recount(c, batch_id)
        ends = c.execute(text("SELECT id, finished_at FROM jobs ORDER BY id LIMIT 100"))
        found = [batch_changes.EndedJob(job_id, JobState.FAILED, ended) for job_id, ended in ends]
    with postgres_database.write() as c:
        # To read all of this small table would cost little; of a large one it would not.
        c.execute(text("SELECT set_config('enable_seqscan', 'off', true)"))
        change = batch_changes.begin_retry(c, batch_id)
        event.listen(c, "before_cursor_execute", note)
        assert batch_changes.retry_jobs(c, change, found, now=now()) == 100
        event.remove(c, "before_cursor_execute", note)
        cursor = c.connection.driver_connection.cursor()
        statement, parameters = statements[0]
        cursor.execute(f"EXPLAIN {statement}", parameters)
        plan = "\n".join(row[0] for row in cursor)
    assert "pk_jobs" in plan, plan


@pytest.mark.postgres
@pytest.mark.parametrize("states", [RUNNABLE_STATES, {JobState.FAILED, JobState.CANCELLED}], ids=["cancel", "retry"])
@pytest.mark.parametrize("has_statistics", [True, False])
def test_the_steps_of_a_cancel_or_retry_walk_their_lines_on_postgres(postgres_database, states, has_statistics):
    """A step that reads and sorts the rest of the table makes a million jobs a matter of minutes."""
    batch_id, _ = stored_batch(postgres_database, 20_000)
    statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        statements.append((statement, parameters))

    with postgres_database.write() as c:
        if JobState.FAILED in states:
            c.execute(text("UPDATE jobs SET state = 'failed', error_code = 'deadline', finished_at = queued_at"))
        if has_statistics:
            c.execute(text("ANALYZE jobs"))
    with postgres_database.read() as c:
        event.listen(c, "before_cursor_execute", note)
        assert batch_changes.next_lines(c, batch_id, states, 0, ROWS) == ROWS
        event.remove(c, "before_cursor_execute", note)
        cursor = c.connection.driver_connection.cursor()
        statement, parameters = statements[-1]
        cursor.execute(f"EXPLAIN {statement}", parameters)
        plan = "\n".join(row[0] for row in cursor)
    assert "uq_jobs_batch_id_line" in plan, plan
    assert "Sort" not in plan, plan


@pytest.mark.postgres
@pytest.mark.parametrize(("span", "dear"), [(16, "1000"), (1000, "4")])
@pytest.mark.parametrize(
    ("query", "index"),
    [
        (AnswerQuery(which=AnswerFilter(finish_reason="length"), after="200"), "uq_jobs_batch_id_line"),
        (AnswerQuery(which=AnswerFilter(text="late"), before="1900"), "uq_jobs_batch_id_line"),
        (AnswerQuery(which=AnswerFilter(mark=AnswerMark.THOUGHT), order=AnswerOrder.NEWEST), "ix_jobs_completion"),
        (AnswerQuery(which=AnswerFilter(error_code="deadline"), after="0"), "ix_jobs_unsuccessful"),
    ],
)
def test_a_slice_of_a_list_stops_where_it_ends_though_postgres_knows_nothing_of_the_table(
    postgres_database, query, index, span, dear
):
    """Without statistics it would gather and sort all rows behind a place, of which a million may follow.

    And it would read all answers that there are to join a few.
    """
    register(postgres_database, "w1")
    batch_id = varied_batch_of(postgres_database, 2000, answer_bytes=20)
    statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        if "FROM jobs" in statement:
            statements.append((statement, parameters))

    with postgres_database.read() as c:
        # A walk over this small table costs little; over a large one it looks cheap when single rows look dear.
        c.execute(text("SELECT set_config('random_page_cost', :dear, true)"), {"dear": dear})
        event.listen(c, "before_cursor_execute", note)
        answer_list.list_answers(c, batch_id, query, Effort(seconds=0.0, first_slice=span, first_texts=span))
        event.remove(c, "before_cursor_execute", note)
        cursor = c.connection.driver_connection.cursor()
        plans = []
        for statement, parameters in statements:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(row[0] for row in cursor))
        assert c.execute(text("SHOW jit")).scalar_one() == "off"
    in_slices = [plan for plan in plans if index in plan]
    assert len(in_slices) >= 3
    for plan in plans:
        assert "Bitmap" not in plan
        assert "Seq Scan" not in plan, plan
        assert "Gather" not in plan, plan


@pytest.mark.postgres
def test_a_check_reads_each_page_by_its_index_on_postgres(postgres_database):
    """A check that reads all answers for each page of them takes hours over a million."""
    register(postgres_database, "w1")
    varied_batch_of(postgres_database, 20_000, answer_bytes=20)
    statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        statements.append((statement, parameters))

    with postgres_database.write() as c:
        c.execute(text("ANALYZE results"))
    with postgres_database.read() as c:
        event.listen(c, "before_cursor_execute", note)
        found, after = readable.unreadable_page(c, schema.results, (5_000, 0))
        event.remove(c, "before_cursor_execute", note)
        assert (found, after is None) == ([], False)
        cursor = c.connection.driver_connection.cursor()
        plans = []
        for statement, parameters in statements:
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(row[0] for row in cursor))
    assert len(plans) == 2
    for plan in plans:
        # A small table is read by a bitmap where a large one is read whole: so many rows are expected.
        assert re.search(r"Index (Only )?Scan using pk_results", plan), plan


def test_a_run_is_removed_without_a_walk_over_all_results(sqlite_database):
    """Whoever removes a run looks for its results; the index also serves the foreign key's own check."""
    statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        statements.append((statement, parameters))

    with sqlite_database.write() as c:
        event.listen(c, "before_cursor_execute", note)
        purging.purge_runs(c, now(), 10)
    (found,) = [entry for entry in statements if entry[0].startswith("DELETE FROM runs")]
    with sqlite_database.read() as c:
        plan = c.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {found[0]}", found[1]).fetchall()
    lines = [row[3] for row in plan if "results" in row[3]]
    assert lines
    assert all("ix_results_run_id" in line for line in lines), lines


def test_looks_at_open_and_braked_batches_leave_the_others_alone(sqlite_database):
    plans: list[str] = []

    def note(connection, _cursor, statement, parameters, _context, _many):
        if not statement.startswith("EXPLAIN"):
            plan = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in plan if re.search(r"\bbatches\b", row[3]))

    with sqlite_database.read() as c:
        event.listen(c, "before_cursor_execute", note)
        batch_news.batches_with_news(c, 0.05)
        braking.braked_batches(c)
    assert ["ix_batches_open" in plans[0], "ix_batches_braked" in plans[1]] == [True, True], plans
