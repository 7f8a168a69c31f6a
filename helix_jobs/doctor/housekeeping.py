"""Check what could be removed: long-ended batches, free room in SQLite's file, logs, kernels, profiles, leftovers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from helix_jobs.client.home_files import FileKind, bytes_by_kind, home_files
from helix_jobs.client.purge import plan_purge
from helix_jobs.doctor.verdict import Level, Verdict, failure
from helix_jobs.errors import ConfigurationError, UnreadableRowError
from helix_jobs.storage import purging
from helix_jobs.storage.database import SQLITE
from helix_jobs.storage.sqlite_space import free_room
from helix_jobs.wording import rough_size

if TYPE_CHECKING:
    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database

OLD: Final = timedelta(days=30)
# Sizes below these are not worth a verdict.
LARGE_DATABASE_BYTES: Final = 1_000_000_000
LARGE_FILES_BYTES: Final = 512_000_000
_REMEDY: Final = "helix purge --older-than 30d"


def check_ended(database: Database, size_bytes: int) -> list[Verdict]:
    """Report how much of the database belongs to long-ended batches, and how much is free."""
    try:
        plan = plan_purge(database, older_than=OLD)
    except UnreadableRowError as error:
        return [failure("old batches", error)]
    with database.read() as c:
        stored = purging.stored_jobs(c)
        free = free_room(c).bytes if database.dialect == SQLITE else 0
    jobs = sum(batch.stored for batch in plan.batches)
    share = int(size_bytes * jobs / stored) if stored else 0
    finding = f"{len(plan.batches):,} ended more than {OLD.days} days ago, {jobs:,} jobs, about {rough_size(share)}"
    if plan.begun:
        finding += f"; an interrupted purge left a part of {len(plan.begun):,}"
    if free:
        finding += f"; {rough_size(free)} of the file are free"
    if share >= LARGE_DATABASE_BYTES or plan.begun:
        return [Verdict("old batches", Level.WARNING, finding, _REMEDY)]
    if free >= LARGE_DATABASE_BYTES:
        return [Verdict("old batches", Level.WARNING, finding, f"{_REMEDY} --vacuum, with no worker running")]
    return [Verdict("old batches", Level.OK, finding)]


def check_files(settings: Settings) -> list[Verdict]:
    """Report the size of Helix's files other than the database and models."""
    try:
        files = home_files(settings.home)
    except ConfigurationError as error:
        return [failure("home, files", error)]
    except OSError as error:
        finding = f"cannot be looked at: {error.filename or settings.home}: {error.strerror or error}"
        return [Verdict("home, files", Level.FAILED, finding, "correct the owner and permissions of what lies there")]
    sizes = bytes_by_kind(files)
    parts = [f"{_WORDS[kind]} {rough_size(sizes.get(kind, 0))}" for kind in FileKind]
    old = sum(file.bytes for file in files if file.used_at < datetime.now(UTC) - OLD)
    finding = f"{', '.join(parts)}; not used for {OLD.days} days: {rough_size(old)}"
    if sum(sizes.values()) >= LARGE_FILES_BYTES:
        return [Verdict("home, files", Level.WARNING, finding, _REMEDY)]
    return [Verdict("home, files", Level.OK, finding)]


_WORDS: Final = {
    FileKind.LOG: "logs",
    FileKind.KERNEL: "compiled kernels",
    FileKind.PROFILE: "profiles",
    FileKind.BROKER: "a stopped broker's",
    FileKind.LEFTOVER: "leftovers",
}
