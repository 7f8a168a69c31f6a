"""Rows that cannot be read, as a damaged disk or somebody's hand leaves them, in the middle of a batch that runs."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Final

from tests.acceptance.faults.progress import wait_ended
from tests.acceptance.faults.scenario import Outcome, Size, scenario

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

_MANY_DIGITS: Final = '{"prompt": "p", "seed": ' + "9" * 10_000 + "}"
# Assignments of an UPDATE; Postgres has types that keep the others out.
_DAMAGES: Final = {
    "sqlite": (
        "request = 'no { json'",
        f"request = '{_MANY_DIGITS}'",
        "request = replace(hex(zeroblob(60000)), '0', '[')",
        "request = CAST(x'7b22ff227d' AS TEXT)",
        "queued_at = 'yesterday'",
        "lease = 9223372036854775807",
    ),
    "postgresql": (f"request = '{_MANY_DIGITS}'", "lease = 2147483647"),
}


@scenario(
    "rows that cannot be read",
    quick=Size(jobs=100, faults=6),
    quick_on=("sqlite",),
    full=Size(jobs=2_000, faults=60),
)
def damaged(installation: Installation, size: Size) -> Outcome:
    """Each fails alone, by its number, and is readable from then on; nobody else notices."""
    batch = dataclasses.replace(installation.accept(size.jobs), allowed=frozenset({"failed"}))
    worker = installation.start(fake_step_seconds="0.05" if installation.fork_server is not None else "0.1")
    wait_ended(installation, batch, 4)
    waiting = [row.id for row in installation.rows(batch.batch_id)][-size.faults :]
    database = installation.own_database
    damages = _DAMAGES[database.dialect]
    with database.write() as c:
        for number, job_id in enumerate(waiting):
            statement = f"UPDATE jobs SET {damages[number % len(damages)]} WHERE id = {job_id} AND state = 'queued'"  # noqa: S608  (a test's own rows)
            assert c.exec_driver_sql(statement).rowcount == 1, "it ran before it was damaged"
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 4)
    broken = [
        f"job {row.id} ended as {row.state}: {row.error_message}"
        for row in installation.rows(batch.batch_id)
        if (row.id in waiting) != (row.error_code == "invalid_request" and "cannot be read" in row.error_message)
    ]
    checked = installation.run(sys.executable, "submit.py", "db", "check")
    if checked.returncode:
        broken.append(f"helix db check: {checked.stdout}{checked.stderr}")
    assert worker.process.poll() is None, worker.log
    if "Traceback" in worker.log:
        broken.append(f"a traceback: {worker.log}")
    return Outcome(accepted=[batch], faults=size.faults, broken=tuple(broken))
