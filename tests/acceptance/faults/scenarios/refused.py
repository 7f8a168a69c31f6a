"""Answers are refused by their jobs' own rules while workers are killed.

The fake engine's die depends on the seed alone, and the seed of a try on the job and its number. So each job's tries,
final state and last answer are known beforehand, whatever dies on the way.
"""

from __future__ import annotations

import itertools
import random
import signal
from typing import TYPE_CHECKING

from sqlalchemy import select

from helix_jobs.engine.fake_engine import DICE
from helix_jobs.new_job import derive_seed
from helix_jobs.storage.schema import jobs, results
from helix_jobs.worker.acceptance import seed_of_try
from tests.acceptance.faults.oracle import Accepted
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.acceptance.faults.scenarios.boundaries_crossed import IN_HAND
from tests.acceptance.faults.scenarios.killed import kill_one_after_another

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.acceptance.faults.installation import Installation

MAX_TRIES = 4
# Four of six faces: a third of the answers is refused, and a job in 81 has no try left.
HIGHEST = 3
ACCEPTED = rf"p\d+ [0-{HIGHEST}] w w w w"


@scenario(
    "answers refused while workers are killed",
    quick=Size(jobs=100, faults=3),
    full=Size(jobs=10_000, faults=50),
)
def killed(installation: Installation, size: Size) -> Outcome:
    """Workers are killed at any moment: while a rule is looked at, and before or after a refusal is written."""
    batch = _submit(installation, size.jobs)
    seconds = kill_one_after_another(installation, batch, size, random.Random(3))
    return _outcome(installation, batch, size.faults, seconds)


@scenario(
    "killed at each boundary of a refusal",
    quick=Size(jobs=120, faults=4),
    quick_on=("sqlite",),
    full=Size(jobs=1_200, faults=20),
)
def each_boundary(installation: Installation, size: Size) -> Outcome:
    """A refusal is committed and its message not acknowledged, or it is written or decided and not committed.

    ``each_boundary`` of the other scenarios says why a worker dies no sooner than after some answers.
    """
    batch = _submit(installation, size.jobs, max_tries=2)
    deaths = ("judged", "committed", "refusing", "giving up")
    each = size.faults // len(deaths)
    # A refused job goes back to the end of the queue, so all first tries come before the second ones, whose refusal is
    # the last: who waits for a last refusal leaves no first one behind.
    for boundary in itertools.chain.from_iterable([death] * each for death in deaths):
        # Of a few jobs, few are refused for good; a single death there meets no job twice.
        passing = 1 if boundary == "giving up" and each == 1 else IN_HAND + 1
        doomed = installation.start_doomed(Plan(die_at=boundary, after=passing))
        assert doomed.wait() == -signal.SIGKILL, doomed.log
    installation.start()
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    return _outcome(installation, batch, size.faults, (), max_tries=2)


def _submit(installation: Installation, count: int, max_tries: int = MAX_TRIES) -> Accepted:
    prompts = tuple(f"p{number} {DICE} w w w w" for number in range(count))
    batch_id = installation.submit(*prompts, accept={"regex": ACCEPTED, "max_tries": max_tries})
    return Accepted(batch_id, prompts, None, frozenset({"failed"}))


def _outcome(
    installation: Installation, batch: Accepted, faults: int, recoveries: Sequence[float], max_tries: int = MAX_TRIES
) -> Outcome:
    lines = range(1, len(batch.prompts) + 1)
    predicted = {line: _predicted(batch.batch_id, line, max_tries) for line in lines}
    with installation.read() as c:
        query = (
            select(jobs, results.c.output_text)
            .join_from(jobs, results, isouter=True)
            .where(jobs.c.batch_id == batch.batch_id)
        )
        found = {row.line: (row.state, row.error_code, row.tries, row.output_text) for row in c.execute(query)}
    broken = [f"line {n}: {found.get(n)} instead of {what}" for n, what in predicted.items() if found.get(n) != what]
    refused = sum(tries for _, _, tries, _ in predicted.values())
    assert refused, "nothing was to be refused"
    return Outcome(
        accepted=[batch],
        faults=faults,
        recoveries=recoveries,
        note=f"{refused} answers refused",
        broken=tuple(broken[:10]),
    )


def _predicted(batch_id: str, line: int, max_tries: int) -> tuple[str, str | None, int, str]:
    """State, error code, tries and answer, as the job's seed alone decides them."""
    seed, text = derive_seed(batch_id, line), ""
    for tries in range(max_tries):
        face = seed_of_try(seed, tries) % 6
        text = f"p{line - 1} {face} w w w w"
        if face <= HIGHEST:
            return "succeeded", None, tries, text
    return "failed", "not_accepted", max_tries, text
