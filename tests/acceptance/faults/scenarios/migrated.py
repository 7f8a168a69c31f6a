"""The schema is migrated down and up under stored jobs: queued, running with a dead worker, ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.script import ScriptDirectory
from sqlalchemy import text

from helix_jobs.storage.migration import alembic_config, current_revision, downgrade, upgrade
from tests.acceptance.faults.progress import wait_ended
from tests.acceptance.faults.scenario import Outcome, Size, scenario

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database
    from tests.acceptance.faults.installation import Installation

# What every version of the tables has, and no migration may change.
JOBS = text("SELECT id, batch_id, line, state, priority, attempts, lease, worker_id FROM jobs ORDER BY id")
RESULTS = text("SELECT job_id, output_text, finish_reason, completion_tokens FROM results ORDER BY job_id")
COUNTS = text("SELECT batch_id, outcome, sum(jobs) FROM batch_counters GROUP BY batch_id, outcome ORDER BY 1, 2")


@scenario(
    "a migration under queued jobs",
    quick=Size(jobs=60, faults=1),
    quick_on=("sqlite",),
    full=Size(jobs=2_000, faults=3),
)
def migrated(installation: Installation, size: Size) -> Outcome:
    """Down to the first version and up again, one at a time; then a worker finishes the jobs.

    The way up gives the database a new installation id, and with it a queue of another name: what the dead worker left
    behind in the old one is nobody's, and every job is published anew.
    """
    # The older versions know one answer a job, without log probabilities, and drop what is more.
    batch = installation.accept(size.jobs, n=1, logprobs=None, prompt_logprobs=None)
    # So that jobs are left on a slow machine, too.
    worker = installation.start(fake_step_seconds="0.05" if installation.fork_server is not None else "0.01")
    wait_ended(installation, batch, size.jobs // 10)
    worker.kill()
    database = installation.database()
    upwards = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()][::-1]
    before = _contents(database)
    assert {row.state for row in before[0]} >= {"queued", "succeeded"}
    try:
        for _ in range(size.faults):
            for revision in upwards[-2::-1]:
                assert downgrade(database, revision) == revision
                assert _contents(database) == before, f"changed on the way down to {revision}"
            assert upgrade(database) == upwards[-1] == current_revision(database)
            assert _contents(database) == before, "changed on the way up"
    finally:
        upgrade(database)  # other scenarios use it next
        database.dispose()
    installation.start()
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    return Outcome(accepted=[batch], faults=2 * (len(upwards) - 1) * size.faults, note=f"down to {upwards[0]} and up")


def _contents(database: Database) -> list[list[Any]]:
    with database.read() as c:
        return [list(c.execute(query)) for query in (JOBS, RESULTS, COUNTS)]
