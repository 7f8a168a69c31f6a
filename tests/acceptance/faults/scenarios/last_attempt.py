"""A job at its last attempt is to run alone, and another job never ends: all others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from helix_jobs.storage.schema import jobs
from tests.acceptance.faults.oracle import Accepted
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

# In place of the product's five minutes.
SOLITUDE_SECONDS = 20.0
QUICK_SOLITUDE_SECONDS = 0.5


@scenario(
    "a job at its last attempt beside one that does not end",
    quick=Size(jobs=60, faults=2),
    quick_on=("sqlite",),
    full=Size(jobs=1_000, faults=5),
)
def beside_endless(installation: Installation, size: Size) -> Outcome:
    """Others end while both are there; the endless one is cancelled then, and the last attempts succeed."""
    is_quick = installation.fork_server is not None
    patience = QUICK_SOLITUDE_SECONDS if is_quick else SOLITUDE_SECONDS
    endless = Accepted(installation.submit("endless story"), ("endless story",), allowed=frozenset({"cancelled"}))
    others, last = installation.accept(size.jobs), installation.accept(size.faults)
    _spend_attempts(installation, last.batch_id)
    worker = installation.start(
        Plan(solitude_seconds=patience), fake_hang="endless", fake_step_seconds="0.02" if is_quick else "0.1"
    )
    installation.wait_done(others, timeout=installation.patience + 20 * patience + size.jobs / 4)
    wait_until(lambda: "cannot run alone" in worker.log, lambda: f"nobody was put off: {worker.log}")
    assert installation.states(endless.batch_id) == {"running": 1}
    with installation.client() as client:
        client.cancel(endless.batch_id)
    installation.wait_done(last, endless, timeout=installation.patience + 40 * patience)
    broken = () if _most_attempts(installation) == 3 else ("no attempt was the last",)
    return Outcome(
        accepted=[endless, others, last],
        faults=size.faults,
        broken=broken,
        note=f"waits {patience:g} s to run alone",
    )


def _spend_attempts(installation: Installation, batch_id: str) -> None:
    """As two workers that died with these jobs leave them."""
    with installation.own_database.write() as c:
        c.execute(update(jobs).where(jobs.c.batch_id == batch_id).values(attempts=jobs.c.max_attempts - 1))


def _most_attempts(installation: Installation) -> int:
    with installation.read() as c:
        return int(c.execute(select(func.max(jobs.c.attempts))).scalar_one())
