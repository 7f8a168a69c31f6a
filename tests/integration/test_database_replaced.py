"""The database is exchanged under a running worker and under a command: both end with a sentence."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from helix_jobs.errors import DatabaseReplacedError
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import ensure_schema
from tests.store_helpers import ping
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a file in use cannot be replaced on Windows")


def removed(file: Path) -> None:
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        file.with_name(name).unlink()


def restored_over(file: Path) -> None:
    backup = file.with_name("backup.db")
    shutil.copyfile(file, backup)
    backup.replace(file)


def without_log(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


def overwritten(file: Path) -> None:
    """As ``cp other.db helix.db`` does it: the same file by name and inode, with another database in it."""
    other = file.with_name("other.db")
    database = Database(f"sqlite:///{other}")
    ensure_schema(database)
    database.dispose()
    shutil.copyfile(other, file)


EXCHANGES = [removed, restored_over, without_log]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_process_notices_that_its_file_is_another(
    sqlite_database: Database, exchange: Callable[[Path], None]
) -> None:
    ping(sqlite_database)
    file = sqlite_database.sqlite_file
    assert file is not None
    exchange(file)
    for use in (sqlite_database.read, sqlite_database.write):
        with pytest.raises(DatabaseReplacedError, match=r"helix\.db.* was (removed|replaced)"), use():
            pass


def test_what_may_happen_to_a_file_is_no_exchange(sqlite_database: Database) -> None:
    """Other processes come and go, and the last one to close a database takes its log away."""
    file = sqlite_database.sqlite_file
    assert file is not None
    url = f"sqlite:///{file}"
    with sqlite_database.read_anew():
        pass
    for _ in range(3):
        other = Database(url)
        with other.write() as c:
            c.execute(text("UPDATE batches SET name = name"))
        other.dispose()
        ping(sqlite_database)
    sqlite_database.dispose()
    assert not file.with_name(f"{file.name}-wal").exists()
    ping(sqlite_database)
    with sqlite_database.write() as c:
        c.execute(text("UPDATE batches SET name = name"))


@pytest.mark.thorough
@pytest.mark.parametrize("exchange", [removed, restored_over, overwritten])
def test_a_worker_ends_for_its_supervisor(embedded_box: Box, exchange: Callable[[Path], None]) -> None:
    box = embedded_box
    batch = box.submit(*["endless story"] * 3)
    worker = box.start_worker(fake_hang="endless")
    box.wait_states(batch, running=3)
    box.own_database.dispose()
    file = box.settings.home / "helix.db"
    exchange(file)
    if exchange is removed:
        fresh = Database(box.settings.database_url)
        ensure_schema(fresh)
        fresh.dispose()
    assert worker.wait() == 1
    what = "another database has taken its place" if exchange is overwritten else "helix.db was "
    assert what in worker.log
    assert "this worker cannot go on and stops: database sqlite" in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.thorough
@pytest.mark.postgres
@pytest.mark.redis
def test_a_worker_notices_another_database_of_the_same_name(services_box: Box) -> None:
    worker = services_box.start_worker()
    with services_box.own_database.write() as c:
        noted = c.execute(text("SELECT id FROM installation")).scalar_one()
        c.execute(text("UPDATE installation SET id = 'another1'"))
    try:
        wait_until(lambda: worker.process.poll() is not None, lambda: worker.log)
    finally:
        with services_box.own_database.write() as c:
            c.execute(text("UPDATE installation SET id = :id"), {"id": noted})
    assert worker.process.returncode == 1
    assert "another database has taken its place" in worker.log
    assert "Traceback" not in worker.log
