"""Messages that come more than once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.storage.records import PublishableJob
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted


@scenario(
    "every message three times",
    quick=Size(jobs=60, faults=120),
    quick_on=("postgres",),
    full=Size(jobs=10_000, faults=20_000),
)
def three_times(installation: Installation, size: Size) -> Outcome:
    """Two workers share the copies: the same job comes to both at once."""
    installation.time_limits = DEFAULT_TIME_LIMITS  # no lease need end
    workers = [installation.start(host=f"host-{n}") for n in range(2)]
    batch = installation.accept(size.jobs)
    publisher = installation.publisher()
    copies = size.faults // size.jobs
    jobs = [PublishableJob(row.id, row.priority) for row in installation.rows(batch.batch_id)]
    for _ in range(copies - 1):
        publisher.publish(jobs)
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    publisher.publish(jobs)  # also when all is over
    wait_until(lambda: publisher.depth() == 0, "the copies are not taken", installation.patience + size.jobs / 20)
    publisher.close()
    assert all(worker.process.poll() is None for worker in workers)
    return Outcome(accepted=[batch], faults=size.faults, broken=_ran_once(installation, [batch]))


@scenario(
    "visibility timeout shorter than the jobs",
    quick=Size(jobs=6, faults=1),
    quick_on=("sqlite",),
    full=Size(jobs=200, faults=200),
)
def short_visibility(installation: Installation, size: Size) -> Outcome:
    """Redis takes every running job's message for abandoned and delivers it again."""
    installation.time_limits = DEFAULT_TIME_LIMITS
    plan = Plan(broker_options={"visibility_timeout": 0.2, "unacked_restore_interval": 0.2})
    installation.start(plan, fake_step_seconds="0.4")
    batch = installation.accept(size.jobs, words=8)  # two steps
    installation.wait_done(batch, timeout=installation.patience + size.jobs)
    redelivered = _restored(installation)
    broken = () if redelivered >= size.faults else (f"only {redelivered} messages came again",)
    return Outcome(accepted=[batch], faults=redelivered, broken=broken + _ran_once(installation, [batch]))


def _restored(installation: Installation) -> int:
    """Messages put back into the queue; kombu reads single entries of ``unacked`` for nothing else."""
    with installation.redis.client() as client:
        return int(client.info("commandstats").get("cmdstat_hget", {"calls": 0})["calls"])


def _ran_once(installation: Installation, batches: Sequence[Accepted]) -> tuple[str, ...]:
    """No worker was lost, so that nothing may have run twice."""
    again = sum(row.attempts != 1 for batch in batches for row in installation.rows(batch.batch_id))
    return (f"{again} jobs were claimed more than once",) if again else ()
