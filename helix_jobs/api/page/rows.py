"""Rows of the lists of batches, ready to be shown. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from helix_jobs.storage.states import BatchState, JobState
from helix_jobs.wording import duration, percent, rate

if TYPE_CHECKING:
    from datetime import datetime

    from helix_jobs.client.pace import Pace
    from helix_jobs.client.snapshot import BatchNow
    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.records import BatchStatus
    from helix_jobs.storage.seen_batches import Label

_BAR_WIDTH: Final = 1000
_LEAST_WIDTH: Final = 4
# In the order of the bar.
_PARTS: Final = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a progress bar.

    Attributes:
        state: The state of its jobs.
        count: How many they are.
        start: Where it begins, in thousandths of the bar.
        width: Its width, in thousandths of the bar.
    """

    state: str
    count: int
    start: int
    width: int


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch in a list.

    Attributes:
        id: Its id.
        title: What a person called it, as it came.
        state: Its state: one word.
        created_at: When it was submitted.
        done: Jobs with an answer or an error.
        total: Its jobs; None while they are being stored.
        share: The part of them that is done, in words.
        failed: Jobs without an answer because of an error.
        parts: Of its progress bar.
        speed: Tokens per second, in words.
        left: How long it will take, or how long it took, in words.
        is_done: Whether nothing is left to do.
    """

    id: str
    title: str
    state: str
    created_at: datetime
    done: int
    total: int | None
    share: str
    failed: int
    parts: tuple[Part, ...]
    speed: str
    left: str
    is_done: bool


@dataclass(frozen=True, slots=True)
class UnacceptedRow:
    """A batch over HTTP whose lines are not accepted, or not yet.

    Attributes:
        id: Its id over HTTP.
        title: What a person called it, as it came.
        state: Its state: one word.
        created_at: When it was asked for.
        faults: How many faults its lines have, as far as they are kept.
    """

    id: str
    title: str
    state: str
    created_at: datetime
    faults: int


def batch_row(batch: BatchNow) -> BatchRow:
    """A batch's row."""
    status = batch.status
    total = status.total
    return BatchRow(
        id=status.id,
        title=title_of(status, batch.label),
        state=str(status.state),
        created_at=status.created_at,
        done=status.processed,
        total=total,
        share=percent(status.processed / total) if total else "",
        failed=status.counts[JobState.FAILED],
        parts=progress_parts(status),
        speed="" if batch.pace.tokens_per_second is None else rate(max(0.0, batch.pace.tokens_per_second)),
        left=_left(status, batch.pace),
        is_done=status.done,
    )


def unaccepted_row(batch: ApiBatch, filename: str | None) -> UnacceptedRow:
    """The row of a batch without jobs."""
    if batch.failed_at is not None:
        state = "refused"
    elif batch.cancelled_at is not None:
        state = "cancelled"
    elif batch.expired_at is not None:
        state = "expired"
    else:
        state = "checking" if batch.cancelling_at is None else "cancelling"
    name = batch.metadata.get("name")
    title = name if isinstance(name, str) and name else filename or batch.id
    return UnacceptedRow(batch.id, title, state, batch.created_at, len(batch.errors or ()))


def title_of(status: BatchStatus, label: Label) -> str:
    """What a batch is called: by its submitter, else by its file, else by its id."""
    own = status.name if status.name != label.api_id else label.filename
    return own or status.source or status.id


def progress_parts(status: BatchStatus) -> tuple[Part, ...]:
    """The parts of a batch's progress bar. What there is a little of is still seen."""
    counts = {state: status.counts[state] for state in _PARTS if status.counts[state]}
    if not counts:
        return ()
    whole = max(status.total or 0, status.stored)
    widths = {state: max(_LEAST_WIDTH, round(_BAR_WIDTH * count / whole)) for state, count in counts.items()}
    # What the small ones have too much, and what rounding has left, is the largest one's.
    over = sum(widths.values()) - _BAR_WIDTH
    if over > 0 or sum(counts.values()) == whole:
        widths[max(widths, key=lambda state: widths[state])] -= over
    starts = accumulate(widths.values(), initial=0)
    return tuple(
        Part(str(state), count, start, widths[state])
        for (state, count), start in zip(counts.items(), starts, strict=False)
    )


def seconds_left(status: BatchStatus, pace: Pace) -> float | None:
    """Seconds until the last job ends: by the last minute, else by the whole time so far; None if not known."""
    if status.done or status.total is None or status.state is BatchState.PAUSED:
        return None
    if pace.eta_seconds is not None:
        return pace.eta_seconds
    elapsed = status.elapsed_seconds
    if not elapsed or not status.processed or status.state is not BatchState.RUNNING:
        return None
    return (status.total - status.finished) * elapsed / status.processed


def _left(status: BatchStatus, pace: Pace) -> str:
    if status.done:
        return "" if status.elapsed_seconds is None else duration(status.elapsed_seconds)
    seconds = seconds_left(status, pace)
    return "" if seconds is None else f"{duration(seconds)} left"
