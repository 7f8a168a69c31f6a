"""A batch's figures are the sums of its rows, whatever the slices."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, update

from helix_jobs.storage import batch_figures as module
from helix_jobs.storage import batch_runs
from helix_jobs.storage.batch_examples import examples_of_error, sample_of_answers
from helix_jobs.storage.batch_figures import TTFT_EDGES, Span, batch_figures
from helix_jobs.storage.schema import jobs, results
from helix_jobs.storage.workers import finish_run, start_run
from tests.ended_batches import ended_batch_of
from tests.store_helpers import fail, must_take, now, register, stored_batch, succeed
from tests.unit.reports.run_totals import totals
from tests.varied_batches import varied_batch_of


@pytest.mark.parametrize("rows", [3, 1000])
def test_sums_are_those_of_the_rows(database, monkeypatch, rows):
    monkeypatch.setattr(module, "_SLICE", rows)
    register(database, "w1")
    batch_id, ids = stored_batch(database, 10)
    begun = now()
    for place, job_id in enumerate(ids[:8]):
        tokens = 499 + place * 3
        taken = must_take(database, job_id)
        succeed(database, taken, completion_tokens=tokens, total_seconds=float(place), ttft_seconds=0.012 * 4**place)
    fail(database, must_take(database, ids[8]))
    with database.write() as c:
        for place, job_id in enumerate(ids[:8]):
            moment = begun + timedelta(seconds=place * 10 + 5)
            c.execute(update(results).where(results.c.job_id == job_id).values(created_at=moment))
    found = batch_figures(database.read, batch_id, Span(begun, 40.0, 4))
    # The last column has what came later as well.
    assert {place: sums.answers for place, sums in found.over_time.items()} == {0: 1, 1: 1, 2: 1, 3: 5}
    assert found.over_time[1].completion_tokens == 502
    assert found.over_time[0].accepted_tokens == 6
    assert found.lengths == {499: 1, 500: 3, 510: 3, 520: 1}
    assert [TTFT_EDGES[place] for place in sorted(found.ttft)[:3]] == [0.015, 0.05, 0.2]
    assert sum(found.ttft.values()) == 8
    assert found.finish_reasons == {"stop": 8}
    assert found.attempts == {1: 9}
    assert [(job.custom_id, job.total_seconds) for job in found.slowest[:2]] == [("c8", 7.0), ("c7", 6.0)]
    assert [job.completion_tokens for job in found.longest] == [520, 517, 514, 511, 508]


def test_a_batch_without_answers_has_none(database):
    batch_id, _ = stored_batch(database, 2)
    found = batch_figures(database.read, batch_id, Span(now(), 1.0, 4))
    assert not found.over_time
    assert not found.slowest


@pytest.mark.thorough(fast=1)
def test_refused_answers_and_other_batches_do_not_count(database):
    batch_id = varied_batch_of(database, 4100)
    varied_batch_of(database, 10)
    found = batch_figures(database.read, batch_id, Span(now() - timedelta(hours=2), 7200.0, 4))
    assert found.tries[2] == 2
    assert sum(found.lengths.values()) == found.lengths[7]
    with database.read() as c:
        answered = c.execute(select(jobs.c.id).where(jobs.c.batch_id == batch_id, jobs.c.state == "succeeded")).all()
        assert found.lengths[7] == len(answered)
        sample = sample_of_answers(c, batch_id, 5)
        failed = examples_of_error(c, batch_id, "prompt_too_long", 2)
    assert len(sample) == 5
    assert sample[0].line < 800
    assert sample[-1].line > 3300
    assert [job.line for job in failed] == [1000, 2000]
    assert failed[0].error_message == "line 1000 cannot be answered"


@pytest.mark.parametrize("count", [1, 12, 49, 95, 200])
def test_a_sample_is_of_the_whole_file(database, count):
    batch_id = ended_batch_of(database, count)
    with database.read() as c:
        lines = [job.line for job in sample_of_answers(c, batch_id, 12)]
    assert len(lines) == min(count, 12)
    assert lines == sorted(lines)
    gaps = [after - before for before, after in zip([0, *lines], [*lines, count + 1], strict=True)]
    assert max(gaps) <= 2 * (count // 12 + 1)


def test_very_many_runs_are_thinned_evenly_for_each_worker(database, monkeypatch):
    monkeypatch.setattr(batch_runs, "_MOST", 4)
    register(database, "w1", "w2")
    begun = now()
    with database.write() as c:
        for minute in range(6):
            for name in ("w1", "w2"):
                run_id = start_run(c, name, begun + timedelta(minutes=minute))
                finish_run(c, run_id, totals(), begun + timedelta(minutes=minute + 1))
    ended = begun + timedelta(minutes=6)
    with database.read() as c:
        found = batch_runs.batch_runs(c, ["w1", "w2"], begun, ended)
        few = batch_runs.batch_runs(c, ["w1"], begun, begun + timedelta(minutes=3))
        none = batch_runs.batch_runs(c, [], begun, ended)
    assert (found.count, found.step) == (12, 3)
    assert [run.worker_id for run in found.read] == ["w1", "w2", "w1", "w2"]
    assert [run.started_at - begun for run in found.read] == [timedelta(minutes=m) for m in (2, 2, 5, 5)]
    assert (few.count, few.step, len(few.read)) == (3, 1, 3)
    assert (none.count, none.read) == (0, ())
