"""Several workers, each as on a host of its own, share the batches of one Redis and one Postgres."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.acceptance.faults.oracle import judge
from tests.acceptance.faults.scenario import Outcome, Size, scenario

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation


@scenario(
    "two workers share a batch",
    quick=Size(jobs=300, faults=0),
    quick_on=("postgres",),
    full=Size(jobs=10_000, faults=0),
    databases=("postgres",),
)
def two(installation: Installation, size: Size) -> Outcome:
    """Nothing is broken: then no job may be executed twice either."""
    return _share(installation, size, workers=2)


@scenario("four workers share a batch", full=Size(jobs=20_000, faults=0), databases=("postgres",))
def four(installation: Installation, size: Size) -> Outcome:
    """The same with four."""
    return _share(installation, size, workers=4)


def _share(installation: Installation, size: Size, workers: int) -> Outcome:
    for number in range(workers):
        installation.start(host=f"host-{number}", fake_step_seconds="0.01")
    batches = [installation.accept(size.jobs // 2) for _ in range(2)]
    installation.wait_done(*batches, timeout=installation.patience + size.jobs / 20)
    rows = [row for batch in batches for row in installation.rows(batch.batch_id)]
    shares = Counter(row.worker_id for row in rows)
    verdict = judge(installation, batches)
    broken = []
    if len(shares) != workers:
        broken.append(f"only {len(shares)} of {workers} workers took part")
    if {(row.attempts, row.lease) for row in rows} != {(1, 1)}:
        broken.append("a job was claimed twice")
    if verdict.executions:
        broken.append(f"{verdict.executions} executions beyond one for each job")
    ordered = sorted(shares.values())
    note = f"{workers} workers, {ordered[0] / size.jobs:.0%} to {ordered[-1] / size.jobs:.0%} of the jobs each"
    return Outcome(accepted=batches, faults=0, note=note, broken=tuple(broken))
