"""When a stored batch is done, from what has ended of it: on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text, update

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.forecast.step_costs import StepCosts
from helix_jobs.outlook.batch_outlook import BatchOutlook, batch_outlook
from helix_jobs.storage import workers
from helix_jobs.storage.answer_cache import AnswerSetup, take_answers
from helix_jobs.storage.glimpses import glimpses, recent_step_costs, waiting_batches
from helix_jobs.storage.pausing import pause_batch
from helix_jobs.storage.records import RunTotals
from helix_jobs.storage.schema import jobs
from helix_jobs.storage.status_counters import recount
from tests.store_helpers import must_take, now, register, status, stored_batch, succeed

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database

LEASE = 30.0
SLOTS = 4  # of the helpers' worker


def answer(database: Database, ids: list[int], *, tokens: int = 20, seconds: float = 2.0) -> None:
    for job_id in ids:
        assert succeed(database, must_take(database, job_id), completion_tokens=tokens, total_seconds=seconds)


def outlook(database: Database, batch_id: str, **options: int) -> BatchOutlook | None:
    with database.read() as c:
        return batch_outlook(c, status(database, batch_id), now(), LEASE, **options)


def seconds(found: BatchOutlook | None) -> float:
    assert found is not None
    return found.forecast.median


def test_what_is_left_takes_as_long_as_what_has_ended(database: Database) -> None:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 120)
    answer(database, ids[:40])
    found = outlook(database, batch_id)
    # 80 jobs of 2 s each in 4 slots.
    assert seconds(found) == pytest.approx(40.0, rel=0.1)
    assert found is not None
    assert found.forecast.low < 40 < found.forecast.high
    assert found.in_front == 0
    answer(database, ids[40:100])
    assert seconds(outlook(database, batch_id)) == pytest.approx(10.0, rel=0.15)


def test_nothing_is_said_where_nothing_is_known(database: Database) -> None:
    batch_id, ids = stored_batch(database, 3)
    assert outlook(database, batch_id) is None, "nobody works"
    register(database, "w1")
    assert outlook(database, batch_id) is None, "nothing was ever answered"
    answer(database, ids[:1])
    assert outlook(database, batch_id) is not None
    with database.write() as c:
        pause_batch(c, batch_id, now=now())
    assert outlook(database, batch_id) is None, "it is held back"
    ended, ids = stored_batch(database, 1)
    answer(database, ids)
    assert outlook(database, ended) is None, "it has ended"


def test_jobs_of_other_batches_that_run_first_count(database: Database) -> None:
    register(database, "w1")
    first, first_ids = stored_batch(database, 60)
    second, _ = stored_batch(database, 20)
    answer(database, first_ids[:20])
    found = outlook(database, second)
    assert found is not None
    assert found.in_front == 40
    # 60 jobs of 2 s in 4 slots; 20 of them in 10 s if they went first.
    assert seconds(found) == pytest.approx(30.0, rel=0.15)
    raised = outlook(database, second, raised_to=5)
    assert raised is not None
    assert raised.in_front == 0
    assert seconds(raised) == pytest.approx(10.0, rel=0.2)
    assert seconds(outlook(database, first)) == pytest.approx(20.0, rel=0.15)


def test_jobs_that_run_are_known_to_be_longer_than_they_are(database: Database) -> None:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 30)
    answer(database, ids[:29])
    must_take(database, ids[29])
    with database.write() as c:
        long_ago = now() - timedelta(seconds=20)
        c.execute(update(jobs).where(jobs.c.id == ids[29]).values(claimed_at=long_ago))
    found = outlook(database, batch_id)
    assert found is not None
    assert found.work.running[0].done_tokens == pytest.approx(200, abs=20)
    assert seconds(found) > 0


def test_the_shape_of_the_rate_comes_from_the_workers_runs(database: Database) -> None:
    register(database, "w1")
    costs = StepCosts()
    for size in (1, 4):
        after = EngineCounters(
            steps=10, sequence_steps=10 * size, decode_sequence_steps=10 * size, completion_tokens=10 * size
        )
        costs.add_step(EngineCounters(), after, 10 * 0.1)  # a step costs the same whatever its size
    with database.write() as c:
        run_id = workers.start_run(c, "w1", now())
        workers.finish_run(c, run_id, RunTotals(steps=20, step_costs=costs.to_json()), now())
        workers.start_run(c, "w1", now())
    with database.read() as c:
        assert recent_step_costs(c, ["w1"], 5) == [costs.to_json()]
    batch_id, ids = stored_batch(database, 13)
    answer(database, ids[:12])
    assert seconds(outlook(database, batch_id)) == pytest.approx(2.0, rel=0.15), "alone it is no faster"


def test_jobs_that_a_worker_has_claimed_ahead_wait_for_a_slot(database: Database) -> None:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 46)
    answer(database, ids[:40])
    began = now()
    for place, job_id in enumerate(ids[40:]):
        must_take(database, job_id)
        with database.write() as c:
            # The last one is the first that was claimed.
            c.execute(update(jobs).where(jobs.c.id == job_id).values(claimed_at=began - timedelta(seconds=1 + place)))
    with database.read() as c:
        found = batch_outlook(c, status(database, batch_id), began, LEASE)
    assert found is not None
    assert (len(found.work.running), len(found.work.waiting), found.work.waiting_count) == (SLOTS, 2, 2)
    # Two for four slots wait half as long as a job takes: one second of those since their claim.
    done = sorted(shape.done_tokens for shape in found.work.running)
    assert done == pytest.approx([20, 30, 40, 50], abs=1)


def measured_run(database: Database) -> None:
    """A run of the worker in which four sequences took 0.1 s for a token each, and 1,000 prompt tokens a second."""
    costs = StepCosts()
    decoded = EngineCounters(steps=10, sequence_steps=40, decode_sequence_steps=40, completion_tokens=40)
    costs.add_step(EngineCounters(), decoded, 10 * 0.1)
    costs.add_step(EngineCounters(), EngineCounters(steps=1, sequence_steps=1, prompt_tokens=1000), 1.0)
    with database.write() as c:
        run_id = workers.start_run(c, "w1", now())
        workers.finish_run(c, run_id, RunTotals(steps=11, step_costs=costs.to_json()), now())


def answer_with_prompt(database: Database, job_id: int, prompt_tokens: int) -> None:
    took = 19 * 0.1 + 4 * prompt_tokens * 0.001  # 20 tokens, beside three others' prompts and its own
    row = {"completion_tokens": 20, "prompt_tokens": prompt_tokens, "total_seconds": took}
    assert succeed(database, must_take(database, job_id), **row)


def test_answers_from_the_cache_do_not_make_prompts_look_short(database: Database) -> None:
    register(database, "w1")
    measured_run(database)
    batch_id, ids = stored_batch(database, 160)
    for job_id in ids[:20]:
        answer_with_prompt(database, job_id, 500)
    setup = "a" * 32
    with database.write() as c:
        c.execute(update(jobs).values(answer_key="k", setup_key=setup))
        assert len(take_answers(c, ids[20:100], AnswerSetup(setup, setup, setup), now())) == 80
        recount(c, batch_id)
    found = outlook(database, batch_id)
    assert found is not None
    assert found.work.waiting[0].computed_tokens == pytest.approx(500, rel=0.1)


def test_further_answers_of_a_job_have_slots_of_their_own_and_share_its_prompt(database: Database) -> None:
    register(database, "w1")
    measured_run(database)
    batch_id, ids = stored_batch(database, 40)
    with database.write() as c:
        c.execute(update(jobs).values(request={"prompt": "word", "sampling": {"n": 3}}))
    for job_id in ids[:20]:
        answer_with_prompt(database, job_id, 300)
    for job_id in ids[20:22]:
        must_take(database, job_id)
    found = outlook(database, batch_id)
    assert found is not None
    # Six answers for four slots.
    assert (len(found.work.running), found.work.waiting_count) == (SLOTS, 2 + 3 * 18)
    assert found.work.waiting[0].computed_tokens == pytest.approx(100, rel=0.1)


def test_longer_prompts_that_are_still_to_come_take_longer(database: Database) -> None:
    """A file is often sorted: the first quarter of its rows has short texts, and the others have long ones."""
    register(database, "w1")
    measured_run(database)
    batch_id, ids = stored_batch(database, 120)

    def words(place: int) -> int:
        return 30 + place if place < 40 else 1000

    with database.write() as c:
        for place, job_id in enumerate(ids):
            c.execute(update(jobs).where(jobs.c.id == job_id).values(request={"prompt": "word " * words(place)}))
    for place, job_id in enumerate(ids[:40]):
        answer_with_prompt(database, job_id, words(place))
    # In 4 slots each of 80 jobs takes a quarter of 19 steps, and its prompt a second.
    assert seconds(outlook(database, batch_id)) == pytest.approx(80 * (19 * 0.1 / 4 + 1.0), rel=0.15)


def test_glimpses_are_spread_over_a_batch_and_survive_edits_by_hand(database: Database) -> None:
    batch_id, ids = stored_batch(database, 50)
    with database.read() as c:
        assert [one.id for one in glimpses(c, batch_id, 100)] == ids
        few = glimpses(c, batch_id, 5)
        assert [one.id for one in few] == [ids[0], ids[12], ids[24], ids[36], ids[49]]
        assert {(one.max_tokens, one.choices) for one in few} == {(None, 1)}
        assert waiting_batches(c) == [batch_id]
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == ids[0]).values(request={"sampling": {"max_tokens": "many", "n": 2}}))
        if c.dialect.name == "sqlite":
            c.execute(text("UPDATE jobs SET request = 'no JSON' WHERE id = :id"), {"id": ids[49]})
    with database.read() as c:
        assert next((one.max_tokens, one.choices) for one in glimpses(c, batch_id, 2)) == (None, 2)


def test_a_batch_without_jobs_left_in_the_queue_waits_for_those_that_run(database: Database) -> None:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 20)
    answer(database, ids[:18])
    for job_id in ids[18:]:
        must_take(database, job_id)
    assert seconds(outlook(database, batch_id)) == pytest.approx(2.0, rel=0.6)


def test_slots_of_several_workers_share_the_work(database: Database) -> None:
    register(database, "w1", "w2")
    batch_id, ids = stored_batch(database, 200)
    answer(database, ids[:40])
    assert seconds(outlook(database, batch_id)) == pytest.approx(160 * 2 / (2 * SLOTS), rel=0.15)


def test_answers_from_the_cache_do_not_make_the_slots_look_busy(database: Database) -> None:
    register(database, "w1")
    batch_id, ids = stored_batch(database, 160)
    answer(database, ids[:40])
    begun, setup = now() - timedelta(seconds=40), "a" * 32
    with database.write() as c:
        c.execute(update(jobs).values(answer_key="k", setup_key=setup))
        for place, job_id in enumerate(ids[:40]):
            times = {"claimed_at": begun, "finished_at": begun + timedelta(seconds=1 + place)}
            c.execute(update(jobs).where(jobs.c.id == job_id).values(times))
        assert len(take_answers(c, ids[40:100], AnswerSetup(setup, setup, setup), now())) == 60
        recount(c, batch_id)
    # 60 jobs of 2 s each in 4 slots, which are taken half of the time.
    assert seconds(outlook(database, batch_id)) == pytest.approx(60.0, rel=0.2)
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.id.in_(ids[:40])).values(tries=1))
        recount(c, batch_id)
    assert seconds(outlook(database, batch_id)) == pytest.approx(120.0, rel=0.2), "each took two tries"
