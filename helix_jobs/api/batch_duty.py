"""What a server has to do with a batch that is due. Pure: the intake carries it out."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.records import BatchStatus


class Duty(Enum):
    """What is to be done."""

    VALIDATE = "validate"  # read its file, and store its jobs
    WITHDRAW = "withdraw"  # its client has cancelled it before its lines were accepted
    LAPSE = "lapse"  # its window has ended before its lines were accepted
    EXPIRE = "expire"  # its window has ended before its jobs
    FINISH_CANCEL = "finish cancel"  # some of its jobs do not say yet that they are cancelled
    REMOVE = "remove"  # its output has expired
    REST = "rest"  # nothing, until it is due again


def duty_of(batch: ApiBatch, status: BatchStatus | None, now: datetime) -> tuple[Duty, datetime | None]:
    """The duty, and when the batch is due next where that is ``REST``; None if never.

    Args:
        batch: The batch.
        status: Of its jobs; None if there are none.
        now: The time.
    """
    if batch.batch_id is None:
        return _without_jobs(batch, now), None
    if status is None:  # its removal has begun
        return Duty.REST, None
    return _after_its_end(batch, status, now) if status.done else _before_its_end(batch, status, now)


def _without_jobs(batch: ApiBatch, now: datetime) -> Duty:
    if batch.is_closed:
        return Duty.REST
    if batch.cancelling_at is not None:
        return Duty.WITHDRAW
    return Duty.LAPSE if batch.expires_at <= now else Duty.VALIDATE


def _before_its_end(batch: ApiBatch, status: BatchStatus, now: datetime) -> tuple[Duty, datetime | None]:
    if status.cancelled_at is not None:
        return Duty.FINISH_CANCEL, None
    # Jobs that somebody has had tried again after the window run without one.
    window = [batch.expires_at] if batch.expired_at is None else []
    if window and batch.expires_at <= now:
        return Duty.EXPIRE, None
    # The output cannot expire sooner than if the batch ended now.
    soonest = [] if batch.output_expires_after is None else [now + timedelta(seconds=batch.output_expires_after)]
    return Duty.REST, min(window + soonest, default=None)


def _after_its_end(batch: ApiBatch, status: BatchStatus, now: datetime) -> tuple[Duty, datetime | None]:
    removed_at = removal_at(batch, status, now)
    return (Duty.REMOVE, None) if removed_at is not None and removed_at <= now else (Duty.REST, removed_at)


def removal_at(batch: ApiBatch, status: BatchStatus, now: datetime) -> datetime | None:
    """When a batch's output expires, and the batch with it; None if it stays, or has not ended.

    Args:
        batch: The batch.
        status: Of its jobs.
        now: The time.
    """
    if batch.output_expires_after is None or not status.done:
        return None
    return (status.finished_at or now) + timedelta(seconds=batch.output_expires_after)
