"""The database file is replaced by its backup under a worker, which ends; the next one finishes what is in it."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from tests.acceptance.faults.progress import ended, wait_ended
from tests.acceptance.faults.scenario import Outcome, Size, scenario

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.faults.installation import Installation


@scenario(
    "the database file replaced by its backup",
    quick=Size(jobs=80, faults=1),
    quick_on=("sqlite",),
    full=Size(jobs=1_000, faults=5),
    databases=("sqlite",),
)
def replaced(installation: Installation, size: Size) -> Outcome:
    """What was done since the backup is done again, once; the broker's messages are of the database before."""
    step = "0.05" if installation.fork_server is not None else "0.1"
    batch = installation.accept(size.jobs)
    worker = installation.start(fake_step_seconds=step)
    recoveries, broken = [], []
    file = installation.settings.home / "helix.db"
    for _ in range(size.faults):
        wait_ended(installation, batch, ended(installation, batch) + 4)
        backup = _back_up(file)
        wait_ended(installation, batch, ended(installation, batch) + size.jobs // (2 * size.faults + 2))
        assert ended(installation, batch) < size.jobs, "the jobs were done before the file was replaced"
        _restore(installation, file, backup)
        began = time.monotonic()
        if (code := worker.wait()) != 1 or "Traceback" in worker.log:
            broken.append(f"the worker ended with {code}: {worker.log}")
        # The leases of the backup are given again.
        installation.executions_file.unlink()
        worker = installation.start(fake_step_seconds=step)
        wait_ended(installation, batch, ended(installation, batch) + 1)
        recoveries.append(time.monotonic() - began)
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 4)
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries, broken=tuple(broken))


def _back_up(file: Path) -> Path:
    backup = file.with_name("backup.db")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    return backup


def _restore(installation: Installation, file: Path, backup: Path) -> None:
    """As whoever forgot that a worker runs; this process opens the new file."""
    installation.forget_database()
    for name in (f"{file.name}-wal", f"{file.name}-shm"):
        file.with_name(name).unlink(missing_ok=True)
    backup.replace(file)
