"""Downloads of a batch's answers, in every format that ``helix results`` writes: streamed, never held whole."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from helix_jobs.api.ids import known_id
from helix_jobs.api.page.viewer import Viewer, viewer_of
from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.results.export import FORMATS, export_results
from helix_jobs.storage.results import iter_results
from helix_jobs.storage.seen_batches import require_seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from helix_jobs.api.context import Context

logger = logging.getLogger(__name__)

# Answers held at once.
_PAGE: Final = 250
_PIECE_BYTES: Final = 64 * 1024
_MEDIA_TYPES: Final = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
_SUFFIXES: Final = {"jsonl": "jsonl", "csv": "csv", "parquet": "parquet", "openai": "openai.jsonl"}

router = APIRouter(include_in_schema=False)


def formats() -> tuple[str, ...]:
    """The formats that can be written here: Parquet needs pyarrow."""
    return tuple(fmt for fmt in FORMATS if fmt != "parquet" or importlib.util.find_spec("pyarrow") is not None)


@router.get("/batches/{batch_id}/download")
async def download(request: Request, batch_id: str, fmt: str = "jsonl", *, failed: bool = False) -> StreamingResponse:
    """The answers so far, in the order of the lines."""
    context: Context = request.app.state.context
    if fmt not in FORMATS:
        raise InputError(f"fmt: is not a format that is written here; use one of {', '.join(FORMATS)}")
    if fmt not in formats():
        raise ConfigurationError('Parquet needs pyarrow, which the server lacks; run pip install "pyarrow>=16" there')
    await run_in_threadpool(_require, context, viewer_of(request), known_id(batch_id))

    def write(stream: BinaryIO) -> None:
        rows = iter_results(context.database.read, batch_id, include_failed=failed, chunk=_PAGE)
        export_results(rows, stream, fmt)

    headers = {"Content-Disposition": f'attachment; filename="{batch_id}.{_SUFFIXES[fmt]}"'}
    return StreamingResponse(
        pieces_of(write), media_type=_MEDIA_TYPES.get(fmt, "application/x-ndjson"), headers=headers
    )


def pieces_of(write: Callable[[BinaryIO], None]) -> Iterator[bytes]:
    """What a function writes to a stream, piece by piece: it writes as fast as the pieces are taken.

    A reader that goes away ends the writing. An error of the function ends the pieces with the same error, so that a
    cut file does not look whole.
    """
    reading, writing = os.pipe()
    errors: list[Exception] = []

    def run() -> None:
        try:
            with os.fdopen(writing, "wb", _PIECE_BYTES) as stream:
                write(stream)
        except BrokenPipeError:
            pass  # nobody reads any more
        except Exception as error:  # noqa: BLE001  (raised where it is read)
            errors.append(error)

    thread = threading.Thread(target=run, name="helix-download", daemon=True)
    try:
        with os.fdopen(reading, "rb", buffering=0) as stream:
            thread.start()
            while piece := stream.read(_PIECE_BYTES):
                yield piece
    finally:
        thread.join()
    if errors:
        logger.warning("a download ended early: %s", errors[0])
        raise errors[0]


def _require(context: Context, viewer: Viewer, batch_id: str) -> None:
    with context.database.read() as c:
        require_seen(c, batch_id, viewer.owner, sees_unowned=viewer.sees_unowned)
