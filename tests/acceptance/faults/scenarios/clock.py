"""The wall clock jumps an hour, forward and back, on one host or on all: nobody's lease expires for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.progress import ended, wait_ended
from tests.acceptance.faults.scenario import Outcome, Size, scenario

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

HOUR = 3600


@scenario(
    "clock set an hour forward and back",
    quick=Size(jobs=60, faults=4),
    quick_on=("postgres",),
    full=Size(jobs=270, faults=8),
)
def jumps(installation: Installation, size: Size) -> Outcome:
    """Two workers, each with a clock of its own; the clocks are wrong for longer than a lease."""
    clocks = [installation.temporary / f"clock-{n}" for n in range(2)]
    for clock in clocks:
        clock.write_text("0")
    quick = installation.fork_server is not None
    batch = installation.accept(size.jobs, words=24)
    workers = [
        installation.start(Plan(clock_file=str(clock)), host=f"host-{n}", fake_step_seconds="0.03" if quick else "0.5")
        for n, clock in enumerate(clocks)
    ]
    offsets = ((HOUR, 0), (HOUR, HOUR), (0, HOUR), (-HOUR, 0), (-HOUR, -HOUR), (HOUR, -HOUR), (0, HOUR), (0, 0))
    share = size.jobs // (2 * size.faults)
    for fault in range(size.faults):
        wait_ended(installation, batch, share * (fault + 1))
        for clock, offset in zip(clocks, offsets[fault], strict=True):
            clock.write_text(str(offset))
    assert ended(installation, batch) < size.jobs, "the jobs were done before the last jump"
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 2)
    for worker in workers:
        assert worker.process.poll() is None, worker.log
        assert "is lost" not in worker.log, worker.log
        assert "declared lost" not in worker.log, worker.log
    rows = installation.rows(batch.batch_id)
    claims = sorted(row.claimed_at for row in rows)
    assert (claims[-1] - claims[0]).total_seconds() > HOUR - 600, "the clocks were not set"
    broken = tuple(f"job {row.id} was claimed {row.lease} times" for row in rows if row.lease != 1)
    return Outcome(accepted=[batch], faults=size.faults, broken=broken, steady_clock=False)
