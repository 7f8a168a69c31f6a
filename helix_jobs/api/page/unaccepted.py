"""The page of a batch whose lines are not accepted yet, or never: how far it is, or which lines are bad."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import RedirectResponse, Response

from helix_jobs.api.page.rows import UnacceptedRow, unaccepted_row
from helix_jobs.api.page.templates import page
from helix_jobs.api.page.viewer import Viewer, viewer_of
from helix_jobs.client.alike import alike
from helix_jobs.errors import BadLine, NotFoundError
from helix_jobs.storage import api_batches, api_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from helix_jobs.api.context import Context
    from helix_jobs.storage.api_records import ApiBatch

# How the ids of batches over HTTP begin.
API_PREFIX: Final = "batch_"
_SEE_OTHER: Final = 303


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as the command shows it.

    Attributes:
        line: The line; None where the file as a whole is at fault.
        field: The field.
        reason: What is wrong.
        remedy: What to do about it.
        more: Further lines with a fault of the same kind.
    """

    line: int | None
    field: str
    reason: str
    remedy: str
    more: int


def show_unaccepted(request: Request, api_id: str) -> Response:
    """The page, or the way to the batch's own once its lines are accepted."""
    context: Context = request.app.state.context
    batch = own_api_batch(context, viewer_of(request), api_id)
    if batch.batch_id is not None:
        target = f"/batches/{batch.batch_id}"
        if "hx-request" in request.headers:
            return Response(headers={"HX-Redirect": target})
        return RedirectResponse(target, _SEE_OTHER)
    row = unaccepted_row(batch, _filename(context, batch))
    return page(request, "unaccepted.html", batch=row, faults=faults_of(batch), moves=_moves(row))


def own_api_batch(context: Context, viewer: Viewer, api_id: str) -> ApiBatch:
    """A batch over HTTP that they asked for.

    Raises:
        NotFoundError: They did not.
    """
    with context.database.read() as c:
        return api_batches.get_api_batch(c, viewer.owner, api_id)


def faults_of(batch: ApiBatch) -> tuple[Fault, ...]:
    """Why the lines were refused, faults of one kind gathered."""
    errors = batch.errors or ()
    whole = [Fault(None, "", str(error.get("message", "")), "", 0) for error in errors if error.get("line") is None]
    lines = [_bad_line(error) for error in errors if error.get("line") is not None]
    gathered = [Fault(bad.line, bad.field, bad.reason, bad.remedy, count - 1) for bad, count in alike(lines)]
    return (*whole, *gathered)


def _bad_line(error: Mapping[str, Any]) -> BadLine:
    # Older versions kept reason and remedy in one sentence.
    reason, remedy = error.get("reason", error.get("message", "")), error.get("remedy", "")
    return BadLine(int(error["line"]), str(error.get("param") or ""), str(reason), str(remedy))


def _moves(row: UnacceptedRow) -> bool:
    return row.state in ("checking", "cancelling")


def _filename(context: Context, batch: ApiBatch) -> str | None:
    try:
        with context.database.read() as c:
            return api_files.get_file(c, batch.owner, batch.input_file_id, datetime.now(UTC)).filename
    except NotFoundError:  # it has expired
        return None
