"""An upload: the file's bytes go into the database part by part as they come, and are never held whole."""

from __future__ import annotations

import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool

from helix_jobs.api.expiry import form_expiry_seconds
from helix_jobs.api.problems import Problem
from helix_jobs.api.upload_form import UploadForm
from helix_jobs.errors import HelixError
from helix_jobs.storage import api_files
from helix_jobs.storage.api_records import ApiFile

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from starlette.requests import Request

    from helix_jobs.api.body_room import BodyRoom
    from helix_jobs.storage.database import Database

BATCH_PURPOSE: Final = "batch"
_MEGABYTE: Final = 1_000_000
# What a form has beside its file.
_FORM_BYTES: Final = 64 * 1024


def max_file_bytes(max_upload_mb: int) -> int:
    """The most bytes of a file."""
    return max_upload_mb * _MEGABYTE


def max_upload_bytes(max_upload_mb: int) -> int:
    """The most bytes of an upload's body: the file and the rest of the form."""
    return max_file_bytes(max_upload_mb) + _FORM_BYTES


async def receive_upload(request: Request, database: Database, room: BodyRoom, max_upload_mb: int) -> ApiFile:
    """Read a request's form and store its file.

    Raises:
        Problem: The form is refused, or there is no room for it now. Nothing of its file stays.
        ClientDisconnect: The client has gone in the middle. Nothing stays.
        DatabaseUnreachableError: The database does not answer. A sweep removes what is stored.
    """
    form = UploadForm(request.headers.get("content-type", ""), max_file_bytes(max_upload_mb))
    upload = _Upload(database, request.state.owner)
    try:
        with room.place() as place:
            async for data in request.stream():
                upload.take(form.feed(data))
                place.hold(upload.held_bytes)
                if upload.is_full:
                    await run_in_threadpool(upload.store)
        form.finish()
        purpose, expires_after = _purpose(form), form_expiry_seconds(form.fields, "expires_after")
        return await run_in_threadpool(upload.finish, form, purpose, expires_after)
    except BaseException:
        if upload.has_begun:
            await run_in_threadpool(upload.abandon)
        raise


class _Upload:
    """A file that comes in."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._id = f"file-{secrets.token_hex(12)}"
        self._created_at = datetime.now(UTC)
        self._held = bytearray()
        self._parts = 0
        self.has_begun = False

    @property
    def held_bytes(self) -> int:
        """What is held and not stored."""
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """Whether enough is held for a part."""
        return len(self._held) >= api_files.PART_BYTES

    def take(self, data: bytes) -> None:
        """Hold the next bytes."""
        self._held += data

    def store(self, *, rest: bool = False) -> None:
        """Store the whole parts that are held, and the rest if so wished, each in a transaction of its own."""
        if not self.has_begun:
            self.has_begun = True
            self._database.transact(lambda c: api_files.begin_upload(c, self._id, self._owner, self._created_at))
        while self.is_full or (rest and self._held):
            part = bytes(self._held[: api_files.PART_BYTES])
            self._database.transact(lambda c, part=part: self._add(c, part))  # type: ignore[misc]
            self._parts += 1
            del self._held[: api_files.PART_BYTES]

    def finish(self, form: UploadForm, purpose: str, expires_after: int | None) -> ApiFile:
        """Store the rest, and make the file exist."""
        self.store(rest=True)
        file = ApiFile(
            id=self._id,
            owner=self._owner,
            filename=form.filename or "",
            purpose=purpose,
            bytes=form.size,
            created_at=self._created_at,
            expires_at=None if expires_after is None else self._created_at + timedelta(seconds=expires_after),
        )
        self._database.transact(lambda c: api_files.finish_upload(c, file))
        return file

    def abandon(self) -> None:
        """Remove what is stored. Raises no HelixError: a sweep removes what stays."""
        with suppress(HelixError):
            api_files.remove_file(self._database, self._id)

    def _add(self, c: Connection, part: bytes) -> None:
        api_files.add_part(c, self._id, self._parts, part, datetime.now(UTC))


def _purpose(form: UploadForm) -> str:
    purpose = form.fields.get("purpose")
    if purpose != BATCH_PURPOSE:
        reason = "is missing" if purpose is None else "has no use here"
        raise Problem(
            400,
            f"purpose: {reason}, as files are read by batches alone; give batch",
            param="purpose",
            code="invalid_request",
        )
    return purpose
