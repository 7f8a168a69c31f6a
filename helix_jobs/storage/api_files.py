"""Uploaded files: their parts are stored one by one, the last step makes the file exist.

A file whose ``bytes`` is NULL is not there: it is being uploaded, or its removal has begun. Parts are removed some at a
time, so that no other writer waits for a large file. Whatever breaks off, an upload or a removal, is taken up by
``removable_files``.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, delete, insert, or_, select, update

from helix_jobs.errors import NotFoundError
from helix_jobs.storage.api_pages import read_page
from helix_jobs.storage.api_records import ApiFile
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import api_batches, api_file_parts, api_files
from helix_jobs.storage.sqlite_space import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import ColumnElement, Connection

    from helix_jobs.storage.api_records import Page
    from helix_jobs.storage.database import Database

# Trade-off: with larger parts there are fewer commits, but each upload and each reader holds one in memory.
PART_BYTES: Final = 1_000_000
# An upload that gains no part for so long has broken off: no client that a server still waits for is as slow.
BROKEN_OFF: Final = timedelta(hours=1)
_PARTS_A_STEP: Final = 16
# The time of the newest part of a file whose removal has begun.
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS: Final = tuple(column for column in api_files.c if column.name != "touched_at")
_VALIDATES: Final = and_(
    api_batches.c.input_file_id == api_files.c.id,
    api_batches.c.batch_id.is_(None),
    api_batches.c.failed_at.is_(None),
    api_batches.c.cancelled_at.is_(None),
    api_batches.c.expired_at.is_(None),
)
# A batch whose lines are not accepted yet still reads the file.
_IS_READ: Final = select(api_batches.c.id).where(_VALIDATES).exists()


def begin_upload(c: Connection, file_id: str, owner: str, now: datetime) -> None:
    """Store a file that is not there yet."""
    values = {"id": file_id, "owner": owner, "filename": "", "purpose": "", "created_at": now, "touched_at": now}
    c.execute(insert(api_files).values(values))


def add_part(c: Connection, file_id: str, number: int, data: bytes, now: datetime) -> None:
    """Store the next part of an upload.

    Raises:
        NotFoundError: The upload has been given up.
    """
    _touch(c, file_id, touched_at=now)
    c.execute(insert(api_file_parts).values(file_id=file_id, number=number, data=data))


def finish_upload(c: Connection, file: ApiFile) -> None:
    """Make the file exist.

    Raises:
        NotFoundError: The upload has been given up.
    """
    _touch(c, file.id, filename=file.filename, purpose=file.purpose, bytes=file.bytes, expires_at=file.expires_at)


def get_file(c: Connection, owner: str, file_id: str, now: datetime) -> ApiFile:
    """An owner's file.

    Raises:
        NotFoundError: The owner has no such file.
    """
    rows = fetch_all(c, select(*_COLUMNS).where(_is_there(now), api_files.c.owner == owner, api_files.c.id == file_id))
    if not rows:
        raise NotFoundError("there is no such file; GET /v1/files lists them")
    return ApiFile(**rows[0]._mapping)  # noqa: SLF001  (SQLAlchemy's documented name)


def list_files(c: Connection, owner: str, page: Page, purpose: str | None, now: datetime) -> list[ApiFile]:
    """A page of an owner's files, and one more if there are more.

    Raises:
        NotFoundError: The owner has no file ``page.after``.
    """
    query = select(*_COLUMNS).where(_is_there(now))
    if purpose is not None:
        query = query.where(api_files.c.purpose == purpose)
    return [ApiFile(**row._mapping) for row in read_page(c, api_files, query, owner, page)]  # noqa: SLF001  (SQLAlchemy's documented name)


def is_read(c: Connection, file_id: str) -> bool:
    """Whether a batch whose lines are not accepted yet reads the file."""
    return c.execute(select(api_files.c.id).where(api_files.c.id == file_id, _IS_READ)).first() is not None


def hide_file(c: Connection, file_id: str) -> None:
    """Begin a removal: from this commit on the file is not there."""
    c.execute(update(api_files).where(api_files.c.id == file_id).values(bytes=None, touched_at=_LONG_AGO))


def removable_files(c: Connection, now: datetime, before: datetime | None = None) -> list[str]:
    """Files that have expired, broke off, or whose removal did; with ``before``, also those that are older.

    None that a batch still reads.
    """
    which: list[ColumnElement[bool]] = [
        and_(api_files.c.bytes.is_(None), api_files.c.touched_at < now - BROKEN_OFF),
        and_(api_files.c.bytes.is_not(None), api_files.c.expires_at <= now),
    ]
    if before is not None:
        which.append(and_(api_files.c.bytes.is_not(None), api_files.c.created_at < before))
    query = select(api_files.c.id).where(or_(*which), ~_IS_READ).order_by(api_files.c.created_at)
    return list(c.execute(query).scalars())


def remove_file(database: Database, file_id: str) -> int:
    """Remove a file in steps, hiding it first; returns the bytes by which SQLite's file shrank.

    Raises:
        DatabaseUnreachableError: The database does not answer; a later sweep removes the rest.
    """
    database.transact(lambda c: hide_file(c, file_id))
    while database.transact(lambda c: _remove_parts(c, file_id)):
        pass
    database.transact(lambda c: c.execute(delete(api_files).where(api_files.c.id == file_id)))
    return give_back(database)


def read_parts(database: Database, file_id: str) -> Iterator[bytes]:
    """The content of a file, part by part, each in a transaction of its own.

    Raises:
        NotFoundError: The file is removed while it is read.
        DatabaseUnreachableError: The database does not answer.
    """
    number = 0
    while True:
        with database.read() as c:
            part = and_(api_file_parts.c.file_id == api_files.c.id, api_file_parts.c.number == number)
            query = select(api_files.c.bytes, api_file_parts.c.data).select_from(
                api_files.outerjoin(api_file_parts, part)
            )
            row = c.execute(query.where(api_files.c.id == file_id)).first()
        if row is None or row.bytes is None:
            raise NotFoundError("the file was removed while it was read; what came is not all of it")
        if row.data is None:
            return
        yield bytes(row.data)
        number += 1


class StoredFile(io.RawIOBase):
    """A file's content as a binary stream.

    Args:
        database: The database.
        file: The file.
        on_part: Called before each part is read; whatever it raises ends the reading.
    """

    def __init__(self, database: Database, file: ApiFile, on_part: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.name = file.filename
        self._parts = read_parts(database, file.id)
        self._on_part = on_part
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  (typeshed's WriteableBuffer is no class at run time)
        """Read the next bytes; 0 at the end.

        Raises:
            NotFoundError: The file is removed while it is read.
            DatabaseUnreachableError: The database does not answer.
        """
        if not self._left:
            self._on_part()
            self._left = memoryview(next(self._parts, b""))
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _is_there(now: datetime) -> ColumnElement[bool]:
    fresh = or_(api_files.c.expires_at.is_(None), api_files.c.expires_at > now)
    return and_(api_files.c.bytes.is_not(None), fresh)


def _touch(c: Connection, file_id: str, **values: Any) -> None:  # noqa: ANN401  (values of columns)
    uploading = (api_files.c.id == file_id, api_files.c.bytes.is_(None), api_files.c.touched_at > _LONG_AGO)
    if not c.execute(update(api_files).where(*uploading).values(values)).rowcount:
        raise NotFoundError("the upload was given up, as no part of it came for long; upload the file again")


def _remove_parts(c: Connection, file_id: str) -> int:
    some = select(api_file_parts.c.number).where(api_file_parts.c.file_id == file_id).limit(_PARTS_A_STEP)
    numbers = list(c.execute(some).scalars())
    which = (api_file_parts.c.file_id == file_id, api_file_parts.c.number.in_(numbers))
    return c.execute(delete(api_file_parts).where(*which)).rowcount if numbers else 0
