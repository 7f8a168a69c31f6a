"""A batch's page: how far it is, what failed, how fast it goes, and what it was submitted with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from helix_jobs.api.ids import known_id
from helix_jobs.api.page.charts import charts_of_sample
from helix_jobs.api.page.downloads import formats
from helix_jobs.api.page.rows import BatchRow, batch_row
from helix_jobs.api.page.templates import page
from helix_jobs.api.page.unaccepted import API_PREFIX, show_unaccepted
from helix_jobs.api.page.viewer import Viewer, viewer_of
from helix_jobs.errors import NotFoundError, UnreachableError
from helix_jobs.forecast.clock import end_of_work
from helix_jobs.opening_hours import OpeningHours
from helix_jobs.outlook.batch_outlook import batch_outlook
from helix_jobs.reports.manifest_words import options_in_words
from helix_jobs.reports.outcome_words import refused_answers
from helix_jobs.storage.answer_sample import answer_sample
from helix_jobs.storage.seen_batches import BatchSettings, batch_settings, require_seen
from helix_jobs.storage.states import BatchState, JobState
from helix_jobs.storage.status import batch_status
from helix_jobs.wording import counted, duration, percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.responses import Response

    from helix_jobs.api.context import Context
    from helix_jobs.client.snapshot import BatchNow
    from helix_jobs.reports.charts import Chart

_SEE_OTHER: Final = 303
_CODES: Final[Mapping[str, str]] = {
    "invalid_request": "The model cannot answer these requests as they are.",
    "prompt_too_long": "These prompts are longer than the model's context.",
    "out_of_memory": "These requests do not fit into memory, not even alone.",
    "worker_lost": "Workers died while they ran these, several times.",
    "server_lost": "The server that computes the answers was lost while it computed these, several times.",
    "deadline": "These took longer than HELIX_JOB_TIMEOUT.",
    "engine_error": "The engine failed on these; the worker's log has more.",
    "not_accepted": "Their acceptance rule refused every answer.",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """How many jobs failed for one reason.

    Attributes:
        code: The error code.
        jobs: How many.
        meaning: What it means, in a sentence.
    """

    code: str
    jobs: int
    meaning: str


@dataclass(frozen=True, slots=True)
class BatchView:
    """What moves on a batch's page.

    Attributes:
        row: Its row in the list.
        counts: State -> jobs.
        errors: The reasons why jobs failed, the most frequent first.
        facts: Label and words of further figures.
        can_cancel: Whether something is left to cancel.
        can_pause: Whether jobs wait that could be held back.
        is_paused: Whether they are.
        paused_why: Why a brake holds them back; empty where a person does.
        can_retry: Whether something can be tried again.
    """

    row: BatchRow
    counts: Mapping[str, int]
    errors: tuple[ErrorCount, ...]
    facts: tuple[tuple[str, str], ...]
    can_cancel: bool
    can_pause: bool
    is_paused: bool
    paused_why: str
    can_retry: bool


def batch_view(batch: BatchNow) -> BatchView:
    """What somebody sees of a batch."""
    status = batch.status
    counts = status.counts
    errors = sorted(status.error_counts.items(), key=lambda item: (-item[1], item[0]))
    return BatchView(
        row=batch_row(batch),
        counts={str(state): counts[state] for state in JobState},
        errors=tuple(ErrorCount(code, jobs, _CODES.get(code, "")) for code, jobs in errors),
        facts=_facts(batch),
        can_pause=status.state in (BatchState.QUEUED, BatchState.RUNNING) and counts[JobState.QUEUED] > 0,
        is_paused=status.state is BatchState.PAUSED,
        paused_why=status.paused_why or "",
        can_cancel=not status.done and status.cancelled_at is None,
        can_retry=status.total is not None and counts[JobState.FAILED] + counts[JobState.CANCELLED] > 0,
    )


@router.get("/batches/{batch_id}")
async def show_batch(request: Request, batch_id: str) -> Response:
    """A batch. Its id over HTTP leads there as well."""
    context: Context = request.app.state.context
    viewer = viewer_of(request)
    if known_id(batch_id).startswith(API_PREFIX):
        return await run_in_threadpool(show_unaccepted, request, batch_id)
    settings = await run_in_threadpool(_settings, context, viewer, batch_id)
    snapshot = await context.board.latest(batch_id)
    if batch_id not in snapshot.batches:
        raise NotFoundError("there is no such batch any more; it was removed")
    batch = snapshot.batches[batch_id]
    charts = await run_in_threadpool(_charts, context, batch_id)
    return page(
        request,
        "batch.html",
        batch=batch_view(batch),
        done=await run_in_threadpool(_done, context, batch),
        batch_id=batch_id,
        charts=charts,
        settings=_shown_settings(settings, batch),
        formats=formats(),
        is_submitting=batch.status.state is BatchState.SUBMITTING,
    )


@router.get("/batches/{batch_id}/charts")
async def show_charts(request: Request, batch_id: str) -> Response:
    """The charts alone, for a page that brings them up to date."""
    context: Context = request.app.state.context
    await run_in_threadpool(_settings, context, viewer_of(request), known_id(batch_id))
    if "hx-request" not in request.headers:
        return RedirectResponse(f"/batches/{batch_id}", _SEE_OTHER)
    charts = await run_in_threadpool(_charts, context, batch_id)
    snapshot = await context.board.latest(batch_id)
    batch = snapshot.batches.get(batch_id)
    return page(
        request,
        "_charts.html",
        charts=charts,
        batch_id=batch_id,
        moves=batch is not None and not batch.status.done,
        done=None if batch is None else await run_in_threadpool(_done, context, batch),
    )


def _settings(context: Context, viewer: Viewer, batch_id: str) -> BatchSettings:
    with context.database.read() as c:
        require_seen(c, batch_id, viewer.owner, sees_unowned=viewer.sees_unowned)
        return batch_settings(c, batch_id)


def _charts(context: Context, batch_id: str) -> Sequence[Chart]:
    with context.database.read() as c:
        status = batch_status(c, batch_id)
        sample = answer_sample(c, batch_id, status.total or status.stored)
    return charts_of_sample(sample)


def _done(context: Context, batch: BatchNow) -> tuple[datetime, datetime, datetime] | None:
    """When the batch will be done: the median, and the ends of a range that eight of ten batches keep."""
    now, settings = datetime.now(UTC), context.settings
    try:
        with context.database.read() as c:
            found = batch_outlook(c, batch.status, now, context.database.time_limits.lease)
    except UnreachableError:
        return None
    if found is None:
        return None
    hours = None if settings.hours is None else OpeningHours.parse(settings.hours)
    ends = found.forecast
    return (
        end_of_work(now, ends.median, hours),
        end_of_work(now, ends.low, hours),
        end_of_work(now, ends.high, hours),
    )


def _facts(batch: BatchNow) -> tuple[tuple[str, str], ...]:
    """The figures that ``helix status`` prints."""
    status = batch.status
    facts: list[tuple[str, str]] = []
    if status.completion_tokens:
        shared = f", {status.cached_prompt_tokens:,} of them shared" if status.cached_prompt_tokens else ""
        facts.append(("Tokens written", f"{status.completion_tokens:,}"))
        facts.append(("Tokens read", f"{status.prompt_tokens:,}{shared}"))
    if status.acceptance_rate is not None:
        drafts = f"{status.accepted_tokens:,} of {counted(status.draft_tokens, 'drafted token')}"
        facts.append(("Drafts accepted", f"{percent(status.acceptance_rate)}, {drafts}"))
    if status.cut_off:
        facts.append(("Cut off", f"{counted(status.cut_off, 'answer')}, by max_tokens or the context"))
    if status.refused:
        facts.append(("Tried again", refused_answers(status.refused)))
    if status.from_cache:
        facts.append(("From cache", f"{counted(status.from_cache, 'answer')} that had been stored"))
    if status.elapsed_seconds is not None:
        facts.append(("Time", duration(status.elapsed_seconds) + ("" if status.done else " so far")))
    return tuple(facts)


def _shown_settings(settings: BatchSettings, batch: BatchNow) -> Sequence[tuple[str, str]]:
    label = batch.label
    shown = [("Batch", batch.status.id)]
    if label.api_id is not None:
        shown.append(("Id over HTTP", label.api_id))
    source = settings.source or label.filename
    if source:
        shown.append(("File", source))
    return [*shown, *options_in_words(settings.defaults, settings.metadata)]
