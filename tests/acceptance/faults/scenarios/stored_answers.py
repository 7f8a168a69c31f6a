"""Workers are killed while jobs take stored answers, and while equal jobs wait for one another."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from helix_jobs.storage.schema import jobs, results
from tests.acceptance.faults.oracle import Accepted
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.acceptance.faults.scenarios.killed import STEP_SECONDS

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

DEATHS = ("taking", "taken")
# Some answers take less, and some of a batch are left.
LONGEST_LIFE = 0.5
LEAST_JOBS_PER_SECOND = 50


@scenario(
    "killed while jobs take stored answers",
    quick=Size(jobs=60, faults=2),
    full=Size(jobs=20_000, faults=20),
)
def taking(installation: Installation, size: Size) -> Outcome:
    """Every prompt is answered once, in one batch, and asked again in others; a worker dies at each look at them.

    A batch after the first has a prompt more, so that there is something to compute, too.
    """
    first = _submit(installation, size.jobs)
    worker = installation.start(fake_step_seconds="0")
    installation.wait_done(first, timeout=installation.patience + size.jobs / LEAST_JOBS_PER_SECOND)
    worker.kill()
    accepted = [first]
    for number in range(size.faults):
        death = DEATHS[number % len(DEATHS)]
        doomed = installation.start_doomed(Plan(die_at=death))
        # Only a worker that publishes passes "taken"; a client at the broker might have published all before it.
        at_broker = death != "taken"
        accepted.append(_submit(installation, size.jobs, f"new {number}", at_broker=at_broker))
        assert doomed.wait() == -signal.SIGKILL, doomed.log
    installation.start(fake_step_seconds="0")
    installation.wait_done(*accepted, timeout=installation.patience + size.faults * size.jobs / 500)
    return Outcome(accepted=accepted, faults=size.faults, broken=_computed_twice(installation))


@scenario(
    "killed while equal jobs wait for one another",
    quick=Size(jobs=60, faults=3),
    quick_on=("sqlite",),
    full=Size(jobs=10_000, faults=50),
)
def twins(installation: Installation, size: Size) -> Outcome:
    """Of each prompt there are three. A worker that dies leaves none of them waiting.

    Each death has a batch of its own, and each worker lives until what was in hand at the last death has ended.
    """
    dice = random.Random(5)
    accepted: list[Accepted] = []
    for number in range(size.faults):
        worker = installation.start(fake_step_seconds=STEP_SECONDS)
        installation.wait_done(*accepted[-1:])
        prompts = [f"b{number} p{n // 3} w w w w" for n in range(size.jobs // size.faults)]
        dice.shuffle(prompts)
        accepted.append(Accepted(installation.submit(*prompts, cache=None), tuple(prompts)))
        time.sleep(dice.uniform(0.0, LONGEST_LIFE))
        worker.kill()
    installation.start()
    installation.wait_done(*accepted, timeout=installation.patience + size.jobs / 20)
    with installation.read() as c:
        taken = c.execute(select(func.count()).where(results.c.from_cache.is_not(None))).scalar_one()
    note = f"{taken:,} of {size.jobs:,} answers taken"
    return Outcome(accepted=accepted, faults=size.faults, note=note)


def _submit(installation: Installation, count: int, *more: str, at_broker: bool = True) -> Accepted:
    """Have the client store a batch, and publish it if it is at the broker; the last lines are new to all."""
    prompts = (*(f"p{number} w w w w" for number in range(count)), *more)
    return Accepted(installation.submit(*prompts, cache=None, at_broker=at_broker), prompts)


def _computed_twice(installation: Installation) -> tuple[str, ...]:
    """Prompts whose answer was computed more than once, though it was stored before."""
    with installation.read() as c:
        query = (
            select(jobs.c.answer_key, func.count().label("times"))
            .join_from(jobs, results, results.c.job_id == jobs.c.id)
            .where(results.c.from_cache.is_(None))
            .group_by(jobs.c.answer_key)
            .having(func.count() > 1)
        )
        return tuple(f"{row.answer_key} was computed {row.times} times" for row in c.execute(query).all()[:10])
