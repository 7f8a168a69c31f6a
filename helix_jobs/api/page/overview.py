"""The first page: what runs now, and the newest batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request

from helix_jobs.api.page.rows import BatchRow, UnacceptedRow, batch_row, seconds_left, unaccepted_row
from helix_jobs.api.page.templates import page
from helix_jobs.api.page.viewer import Viewer, viewer_of
from helix_jobs.storage.states import BatchState
from helix_jobs.wording import duration, rate

if TYPE_CHECKING:
    from starlette.responses import Response

    from helix_jobs.api.context import Context
    from helix_jobs.client.snapshot import Snapshot, WorkerNow

_SHOWN: Final = 12
_UNKNOWN: Final = "–"  # noqa: RUF001  (a dash where a figure will stand)

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Overview:
    """What the first page shows.

    Attributes:
        speed: Tokens per second of all answers, in words.
        running: Jobs that run.
        slots: How many may run at once.
        queued: Jobs that wait.
        left: How long they will take, in words.
        workers: The workers.
        batches: The batches that are not done, and the newest others.
        unaccepted: Batches that have no jobs yet, or never will.
        has_more: Whether there are more batches than are shown.
    """

    speed: str
    running: int
    slots: int
    queued: int
    left: str
    workers: tuple[WorkerNow, ...]
    batches: tuple[BatchRow, ...]
    unaccepted: tuple[UnacceptedRow, ...]
    has_more: bool


def overview_of(snapshot: Snapshot, viewer: Viewer) -> Overview:
    """What somebody sees of a moment. How much runs and waits is of everybody; batches are their own."""
    seen = [batch for batch in snapshot.batches.values() if viewer.sees(batch.label.owner)]
    # Sorted by this alone, so the newest stay first.
    shown = sorted(seen, key=lambda batch: batch.status.done)[:_SHOWN]
    active = [batch for batch in snapshot.batches.values() if batch.status.state is BatchState.RUNNING]
    speed = snapshot.pace.tokens_per_second
    if speed is None and snapshot.running:  # the first look: by the batches' own time
        own = [batch.pace.tokens_per_second for batch in active if batch.pace.tokens_per_second is not None]
        speed = sum(own) if own else None
    left = snapshot.pace.eta_seconds
    if left is None:
        left = max((found for one in active if (found := seconds_left(one.status, one.pace)) is not None), default=None)
    waits = snapshot.queued + snapshot.running > 0
    return Overview(
        speed=_UNKNOWN if speed is None else rate(max(0.0, speed)),
        running=snapshot.running,
        slots=sum(one.worker.slots for one in snapshot.workers if one.is_alive),
        queued=snapshot.queued,
        left=duration(left) if left is not None and waits else _UNKNOWN,
        workers=tuple(snapshot.workers),
        batches=tuple(batch_row(batch) for batch in shown),
        unaccepted=tuple(
            unaccepted_row(batch, name) for batch, name in snapshot.unaccepted if viewer.sees(batch.owner)
        )[:_SHOWN],
        has_more=len(seen) > len(shown),
    )


@router.get("/")
async def show_overview(request: Request) -> Response:
    """What runs now."""
    context: Context = request.app.state.context
    snapshot = await context.board.latest()
    return page(request, "overview.html", overview=overview_of(snapshot, viewer_of(request)))
