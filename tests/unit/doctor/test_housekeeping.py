"""What doctor says of that which could be removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from helix_jobs.client.home_files import home_files
from helix_jobs.doctor import housekeeping
from helix_jobs.doctor.housekeeping import check_ended, check_files
from helix_jobs.storage.schema import batch_counters
from tests.store_helpers import must_take, register, stored_batch, succeed
from tests.unit.doctor.verdicts import OK, WARNING, only


@pytest.fixture
def old_batch(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 3)
    for job_id in ids:
        assert succeed(database, must_take(database, job_id))
    stored_batch(database, 1)
    with database.write() as c:
        c.execute(update(batch_counters).values(finished_at=datetime.now(UTC) - timedelta(days=40)))
    return batch_id


@pytest.mark.usefixtures("old_batch")
def test_a_small_share_of_old_batches_is_told_and_a_large_one_warned_of(database):
    found = only(check_ended(database, 400_000_000), "old batches")
    assert (found.level, found.remedy) == (OK, None)
    assert found.finding.startswith("1 ended more than 30 days ago, 3 jobs, about 300 MB")
    found = only(check_ended(database, 4 << 30), "old batches")
    assert (found.level, found.remedy) == (WARNING, "helix purge --older-than 30d")


def test_an_empty_database_has_nothing_old(database):
    assert only(check_ended(database, 1 << 40), "old batches").level is OK


def test_files_are_counted_by_kind(settings, monkeypatch):
    assert only(check_files(settings), "home, files").level is OK
    settings.make_home()
    (settings.home / "native").mkdir()
    (settings.home / "native" / "kernels-a.so").write_bytes(b"x" * (3 << 20))
    found = only(check_files(settings), "home, files")
    assert found.level is OK
    assert "compiled kernels 3 MB" in found.finding
    monkeypatch.setattr(housekeeping, "LARGE_FILES_BYTES", 1 << 20)
    assert only(check_files(settings), "home, files").remedy == "helix purge --older-than 30d"


def test_files_that_go_while_they_are_looked_at_are_left_out(settings, monkeypatch):
    """A worker that runs renames its half-written files."""
    settings.make_home()
    for name in (".a.partial", ".b.partial"):
        (settings.home / name).write_bytes(b"x")
    listed = Path.iterdir

    def renamed_meanwhile(folder):
        found = list(listed(folder))
        (settings.home / ".a.partial").unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", renamed_meanwhile)
    assert [file.path.name for file in home_files(settings.home)] == [".b.partial"]
