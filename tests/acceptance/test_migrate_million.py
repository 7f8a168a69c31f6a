"""The migration of a million results, down and up, beside a reader and a writer. Run with -m slow -s."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import func, select

from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.storage import batches
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.migration import downgrade, head_revision, upgrade
from helix_jobs.storage.records import NewBatch
from helix_jobs.storage.results import iter_results
from helix_jobs.storage.schema import results
from helix_jobs.storage.status import batch_status
from tests.ended_batches import ended_batch_of
from tests.store_helpers import new_jobs, now, register

ROWS = 1_000_000
BEFORE = "0006"


class Neighbour(threading.Thread):
    """Repeats one transaction, and notes how long each took and how many the database refused."""

    def __init__(self, database, function) -> None:
        super().__init__()
        self._database = database
        self._function = function
        self.stop = threading.Event()
        self.seconds: list[float] = []
        self.refused = 0

    def run(self) -> None:
        while not self.stop.is_set():
            started = time.perf_counter()
            try:
                self._function(self._database)
            except DatabaseUnreachableError:
                self.refused += 1
            self.seconds.append(time.perf_counter() - started)
            self.stop.wait(0.02)


def read(database) -> None:
    with database.read() as c:
        c.execute(select(func.count()).select_from(batches.batches)).scalar_one()


def write(database) -> None:
    def store(c) -> None:
        batch_id = batches.new_batch_id(now())
        batches.create_batch(c, NewBatch(id=batch_id, created_at=now()))
        batches.insert_jobs(c, batch_id, new_jobs(2), now())

    database.transact(store)


def timed(database, move, revision) -> str:
    neighbours = [Neighbour(database, read), Neighbour(database, write)]
    for neighbour in neighbours:
        neighbour.start()
    started = time.perf_counter()
    try:
        assert move(database, revision) == (head_revision() if revision == "head" else revision)
    finally:
        seconds = time.perf_counter() - started
        for neighbour in neighbours:
            neighbour.stop.set()
        for neighbour in neighbours:
            neighbour.join()
    waits = ", ".join(
        f"{name} waited {max(one.seconds):.1f} s at most ({one.refused} of {len(one.seconds)} refused)"
        for name, one in zip(("a reader", "a writer"), neighbours, strict=True)
    )
    return f"{database.dialect}: {ROWS:,} results to {revision} in {seconds:.1f} s; {waits}"


@pytest.mark.slow
def test_a_million_results_move_down_and_up_again(database):
    register(database, "w1")
    batch_id = ended_batch_of(database, ROWS)
    print()  # noqa: T201  (the figures are the reader's)
    print(timed(database, downgrade, BEFORE))  # noqa: T201  (see above)
    print(timed(database, upgrade, "head"))  # noqa: T201  (see above)
    with database.write(unlimited=True) as c:
        assert c.execute(select(func.count()).select_from(results)).scalar_one() == ROWS
        assert batch_status(c, batch_id).completion_tokens == 7 * ROWS
        assert counters.counters_agree(c, batch_id)
        first = next(iter_results(c, batch_id, chunk=10))
    assert (first.line, first.choice, first.output_text) == (1, 0, "a" * 900)
