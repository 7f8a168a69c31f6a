"""A worker whose jobs are equal to answered ones: by its messages, and by what its reconciler publishes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from helix_jobs.answer_key import answer_key
from helix_jobs.new_job import NewJob
from helix_jobs.storage import batches, pausing, publishing
from helix_jobs.storage.answer_cache import AnswerSetup
from helix_jobs.storage.records import NewBatch
from helix_jobs.storage.schema import jobs, results
from helix_jobs.worker.reconciler import Reconciler
from tests.store_helpers import now, status
from tests.unit.worker.service_bench import Bench
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import PublishableJob

SETUP = AnswerSetup("a" * 32, "a" * 32, "a" * 32)


class Broker:
    """Holds ids, and nobody takes them."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def depth(self) -> int:
        return len(self.sent)

    def turn(self) -> AbstractContextManager[None]:
        return nullcontext()

    def publish(self, jobs: Sequence[PublishableJob]) -> None:
        self.sent += [job.id for job in jobs]

    def forget_delivered(self, *_: object) -> int:
        return 0


@pytest.fixture
def bench(database: Database) -> Iterator[Bench]:
    bench = Bench(database, setup=SETUP, hang="endless")
    yield bench
    bench.close()


def add(database: Database, name: str, *prompts: str) -> list[int]:
    requests: list[dict[str, Any]] = [
        {"prompt": prompt, "sampling": {}, "seed": 1, "metadata": {}} for prompt in prompts
    ]
    lines = [
        NewJob(line=n, custom_id=None, request=request, answer_key=answer_key(request, wanted=None))
        for n, request in enumerate(requests, 1)
    ]
    with database.write() as c:
        batches.create_batch(c, NewBatch(id=name, created_at=now()))
        batches.insert_jobs(c, name, lines, now())
        batches.seal_batch(c, name, len(prompts), "digest")
        return list(c.execute(select(jobs.c.id).where(jobs.c.batch_id == name).order_by(jobs.c.line)).scalars())


def origins(database: Database) -> dict[int, int | None]:
    with database.read() as c:
        return {row.job_id: row.from_cache for row in c.execute(select(results.c.job_id, results.c.from_cache))}


def test_a_delivered_job_takes_the_answer_of_an_equal_one_without_the_engine(database: Database, bench: Bench) -> None:
    first = add(database, "b1", "one")
    bench.run_all(*first)
    steps = bench.engine.counters().steps
    second = add(database, "b2", "one")
    bench.run_all(*second)
    assert origins(database) == {first[0]: None, second[0]: first[0]}
    assert bench.engine.counters().steps == steps
    assert bench.service.counters.from_cache == 1
    assert bench.service.counters.outcomes["succeeded"] == 1, "what this worker computed"
    assert status(database, "b2").from_cache == 1


def test_a_message_of_a_twin_is_left_while_the_other_runs(database: Database, bench: Bench) -> None:
    ids = add(database, "b1", "endless", "endless")
    with database.write() as c:
        publishing.mark_published(c, ids, now())
    bench.run(ids[0])
    bench.wait_running(ids[0])
    bench.run_all(ids[1])
    assert (bench.rows()[ids[1]].state, bench.rows()[ids[1]].published_at) == ("queued", None)
    assert bench.rows()[ids[1]].attempts == 0
    bench.service.abort_job(ids[0])
    wait_until(lambda: bench.rows()[ids[0]].state == "queued", "the job is not handed back")
    bench.run(ids[1])
    bench.wait_running(ids[1])


def test_a_message_that_leads_to_nothing_is_sent_again_while_its_job_waits(database: Database, bench: Bench) -> None:
    ids = add(database, "b1", "one")
    with database.write() as c:
        pausing.pause_batch(c, "b1", now=now())
        publishing.mark_published(c, ids, now())  # by a publisher that has read the job before
    bench.run_all(*ids)
    assert (bench.rows()[ids[0]].state, bench.rows()[ids[0]].published_at) == ("queued", None)


@pytest.mark.postgres
def test_a_job_whose_answer_is_locked_is_sent_again(postgres_database: Database) -> None:
    bench = Bench(postgres_database, setup=SETUP)
    (source,) = add(postgres_database, "b1", "one")
    bench.run_all(source)
    (job_id,) = add(postgres_database, "b2", "one")
    with postgres_database.write() as c:
        publishing.mark_published(c, [job_id], now())
    with postgres_database.write() as c:
        c.execute(select(jobs.c.id).where(jobs.c.id == source).with_for_update())
        bench.run_all(job_id)
    assert (bench.rows()[job_id].state, bench.rows()[job_id].published_at) == ("queued", None)
    bench.run_all(job_id)
    assert origins(postgres_database)[job_id] == source
    bench.close()


def test_an_answer_to_a_later_try_is_nobody_elses(database: Database, bench: Bench) -> None:
    first = add(database, "b1", "one")
    with database.write() as c:
        c.execute(update(jobs).values(tries=1))
    bench.run_all(*first)
    second = add(database, "b2", "one")
    bench.run_all(*second)
    assert set(origins(database).values()) == {None}
    with database.write() as c:
        c.execute(update(jobs).values(tries=0))


def test_the_reconciler_publishes_what_has_no_stored_answer(database: Database, bench: Bench) -> None:
    bench.run_all(*add(database, "b1", *(f"p{n}" for n in range(10))))
    ids = add(database, "b2", *(f"p{n}" for n in range(8)), "new", "new", "other")
    broker = Broker()
    reconciler = Reconciler(database, broker, worker_id="me", setup=lambda: SETUP)
    reconciler.tick()
    assert broker.sent == [ids[8], ids[10]]
    assert (reconciler.counters.from_cache, reconciler.counters.published) == (8, 2)
    bench.run_all(ids[8])
    reconciler.tick()
    assert origins(database)[ids[9]] == ids[8]
    assert broker.sent == [ids[8], ids[10]]


def test_while_the_setup_is_not_known_every_job_is_published(database: Database) -> None:
    ids = add(database, "b1", "one", "one")
    broker = Broker()
    Reconciler(database, broker, worker_id="me").tick()
    assert broker.sent == ids
