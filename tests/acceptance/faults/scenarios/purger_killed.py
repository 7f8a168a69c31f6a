"""``purge`` is killed half-way while a worker works and others submit; the next purge ends its work, and no other does.

What is purged here ended two days ago. What is submitted meanwhile, and a batch that ended before, must stay.
"""

from __future__ import annotations

import itertools
import random
import signal
import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from helix_jobs.client.purge import plan_purge, purge
from helix_jobs.errors import NotFoundError
from helix_jobs.storage import purging, status
from helix_jobs.storage.check import check_rows
from helix_jobs.storage.records import RunTotals
from helix_jobs.storage.schema import jobs, results, workers
from helix_jobs.storage.states import JobState
from helix_jobs.storage.workers import finish_run, register_worker, start_run, stop_worker
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.ended_batches import ended_batch_of
from tests.store_helpers import now, worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted

# Where it dies and at which passing: two batches go, each in two steps.
AT_BOUNDARIES = (
    ("hiding", 1), ("hidden", 1), ("removing", 1), ("removed", 1), ("removing", 2), ("ending", 1), ("hiding", 2),
    ("removing", 4), ("ending", 2), ("forgetting", 1), ("forgotten", 1),
)  # fmt: skip
# Of each round of deaths, those that come some moments after its first transaction, wherever it is then.
AT_RANDOM = 3
QUICK_ROWS = 20
LONG_AGO = timedelta(days=2)
OLD = timedelta(days=1)
# A batch that somebody submits meanwhile.
SMALL = 30


@scenario(
    "purge killed at each boundary and at random moments",
    quick=Size(jobs=4 * QUICK_ROWS * 14, faults=14),
    full=Size(jobs=20_000 * 28, faults=28),
)
def killed(installation: Installation, size: Size) -> Outcome:
    """One death after another, each on batches of its own."""
    quick = installation.fork_server is not None
    longest = 0.04 if quick else 1.0
    dice = random.Random(11)
    installation.start(fake_step_seconds="0")
    kept = installation.accept(SMALL)
    installation.wait_done(kept)
    deaths = [(boundary, passing, 0.0) for boundary, passing in AT_BOUNDARIES]
    deaths += [("hiding", 1, longest)] * AT_RANDOM
    broken: list[str] = []
    faults = 0
    with _submissions(installation) as submitted:
        for boundary, passing, latest in itertools.islice(itertools.cycle(deaths), size.faults):
            doomed = _Doomed(installation, size.jobs // size.faults // 2)
            late = dice.uniform(0.0, latest)
            plan = Plan(die_at=boundary, after=passing, late=late, purge_rows=QUICK_ROWS if quick else 0)
            process = installation.start_submit(plan, "purge", "--older-than", "1d", "--yes")
            code = process.wait()
            assert code == -signal.SIGKILL or (late and code == 0), process.log
            faults += code != 0
            broken += [f"{boundary} {passing}, {late:.3f} s behind it: {what}" for what in doomed.look_and_purge()]
    installation.wait_done(*submitted)
    for command in (("db", "check"), ("purge", "--older-than", "1d", "--yes")):
        process = installation.start_submit(Plan(), *command)
        assert process.wait() == 0, process.log
    note = f"beside them {size.jobs:,} jobs purged"
    return Outcome(accepted=[kept, *submitted], faults=faults, broken=tuple(broken), note=note)


@contextmanager
def _submissions(installation: Installation) -> Iterator[list[Accepted]]:
    """Submit one small batch after the other, each when the one before has ended, while the block runs."""
    submitted: list[Accepted] = []
    stop = threading.Event()

    def submit() -> None:
        while not stop.is_set():
            submitted.append(installation.accept(SMALL))
            installation.wait_done(submitted[-1])

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield submitted
    finally:
        stop.set()
        thread.join()


class _Doomed:
    """Two batches that ended long ago, and a worker that stopped then."""

    def __init__(self, installation: Installation, count: int) -> None:
        self._database = installation.own_database
        self._count = count
        then = now() - LONG_AGO
        with self._database.write() as c:
            register_worker(c, worker("gone"), then)
            run_id = start_run(c, "gone", then)
            finish_run(c, run_id, RunTotals(), then)
            stop_worker(c, "gone", then)
        self._ids = [ended_batch_of(self._database, count, age=LONG_AGO) for _ in range(2)]

    def look_and_purge(self) -> list[str]:
        """What an interrupted purge and those after it left that should not be, in words."""
        broken = [
            *self._check("after the death"),
            *(str(finding) for finding in check_rows(self._database, repair=False)),
        ]
        # Nothing is so old: it removes what the dead one has begun, and nothing else.
        visible = self._visible()
        purge(self._database, plan_purge(self._database, older_than=timedelta(weeks=9)))
        broken += self._check("after the next purge")
        if self._visible() != visible:
            broken.append("the next purge took what the dead one had not begun")
        with self._database.read() as c:
            left = set(c.execute(select(jobs.c.batch_id).where(jobs.c.batch_id.in_(self._ids)).distinct()).scalars())
            if purging.half_purged(c):
                broken.append("the next purge left a batch half removed")
        if left != visible:
            broken.append(f"jobs are left of {left}, to be seen are {visible}")
        purge(self._database, plan_purge(self._database, older_than=OLD))
        broken += self._check("after the last purge")
        with self._database.read() as c:
            rest = c.execute(select(workers.c.id).where(workers.c.id == "gone")).all()
        if self._visible() or rest:
            broken.append("old batches, or workers, are left")
        return broken

    def _visible(self) -> set[str]:
        with self._database.read() as c:
            return set(self._ids) & set(status.batch_ids(c))

    def _check(self, when: str) -> Iterator[str]:
        """Each batch is to be seen whole, or not at all."""
        visible = self._visible()
        with self._database.read() as c:
            for batch_id in self._ids:
                of_it = jobs.c.batch_id == batch_id
                rows = c.execute(select(func.count()).select_from(jobs).where(of_it)).scalar_one()
                answers = select(func.count()).select_from(results.join(jobs, jobs.c.id == results.c.job_id))
                answered = c.execute(answers.where(of_it)).scalar_one()
                if answered != rows:
                    yield f"{when}: {answered} answers of {rows} jobs"
                try:
                    succeeded = status.batch_status(c, batch_id).counts[JobState.SUCCEEDED]
                except NotFoundError:
                    if batch_id in visible:
                        yield f"{when}: {batch_id} is listed and not found"
                else:
                    if not rows == succeeded == self._count:
                        yield f"{when}: {batch_id} has {rows} jobs, counts {succeeded} and had {self._count}"
