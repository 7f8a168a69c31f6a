"""BatchOutlook: when a stored batch will be done, from what has ended of it and from the workers' latest runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import UnreadableRowError
from helix_jobs.forecast.forecast import Forecast, forecast
from helix_jobs.forecast.length_model import Answer, LengthModel
from helix_jobs.forecast.prompt_model import PromptModel
from helix_jobs.forecast.rate_model import DRIFT, GUSTS, RateModel
from helix_jobs.forecast.step_costs import StepCosts
from helix_jobs.forecast.work import MOST_JOBS, JobShape, Work
from helix_jobs.outlook.slot_time import LATEST, Slots, SlotTime, limit
from helix_jobs.storage.glimpses import (
    Glimpse,
    glimpses,
    recent_glimpses,
    recent_step_costs,
    running_glimpses,
    waiting_batches,
)
from helix_jobs.storage.liveness import seems_alive
from helix_jobs.storage.states import BatchState, JobState
from helix_jobs.storage.status import batch_statuses
from helix_jobs.storage.workers import live_workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from helix_jobs.storage.records import BatchStatus, Worker

# Jobs that are looked at: of the batch, of each other one, and of those that were answered last.
_OWN: Final = 1024
_OTHERS: Final = 64
_RECENT: Final = 256
# Runs, each of a minute at most, from which the cost of steps is read.
_RUNS: Final = 16
# Ended jobs that a batch needs before its own lengths and times count alone.
_ENOUGH: Final = 12
# How much the time of a token differs from job to job, as a share.
_JOBS_DIFFER: Final = 0.3
# The level comes from a short time, so what is left may go faster or more slowly by more than a drift of the machine.
_UNREST: Final = 1.5
_DRAWS: Final = 100
_LEAST_BUSY: Final = 0.05
# No job ends for so many seconds, and for so many times the time of one: it is a rest.
_REST: Final = 10.0


@dataclass(frozen=True, slots=True)
class BatchOutlook:
    """What is known of the end of a batch.

    Attributes:
        forecast: Seconds of work until its last job ends, from when it was made.
        work: What was simulated.
        in_front: Jobs of other batches that run first.
        lengths: How long answers become.
        rate: How fast the workers are together.
        is_int8: The workers' weights have 8 bits, or they have none.
    """

    forecast: Forecast
    work: Work
    in_front: int
    lengths: LengthModel
    rate: RateModel
    is_int8: bool


def batch_outlook(
    c: Connection, status: BatchStatus, now: datetime, lease: float, *, raised_to: int | None = None
) -> BatchOutlook | None:
    """The outlook of a batch; None where it has ended or is held back, nobody works, or nothing was ever answered.

    Args:
        c: A read transaction.
        status: The batch's.
        now: The time.
        lease: Seconds; a worker that was silent for longer counts as gone.
        raised_to: Reckon as if the batch's jobs had at least this priority.
    """
    if status.done or status.state not in (BatchState.QUEUED, BatchState.RUNNING):
        return None
    workers = [worker for worker in live_workers(c) if seems_alive(worker, lease)]
    if not workers:
        return None
    try:
        return _outlook(c, status, now, workers, raised_to)
    except UnreadableRowError:
        return None


def _outlook(
    c: Connection, status: BatchStatus, now: datetime, workers: Sequence[Worker], raised_to: int | None
) -> BatchOutlook | None:
    own = [_raised(one, raised_to) for one in glimpses(c, status.id, _OWN)]
    ended = [one for one in own if one.has_ended]
    if len(ended) < _ENOUGH:
        ended += recent_glimpses(c, workers[0].target_model, _RECENT)
    waiting, in_front = _waiting(c, status, own)
    slots = sum(worker.slots for worker in workers)
    running = running_glimpses(c)
    taken, time = Slots.of(running, slots), SlotTime.of(ended)
    rate = _rate(c, time, workers, min(slots, len(taken.running) + len(waiting)))
    if rate is None:
        return None
    if all(one.batch_id == status.id for one in running):
        rate = rate.scaled(1 / _busy_share(status, own, running, slots, now))
    done = taken.done_tokens(now, time, rate.at(min(slots, len(taken.running) or 1)))
    queued = max(len(waiting), _answers(status, own) + in_front)
    # Where each that waits stands for many, so do those that are claimed ahead.
    ahead = taken.claimed[:: max(1, round(queued / len(waiting)))] if waiting else taken.claimed
    # An answer from the cache computed no prompt, and says nothing of one that is computed.
    seen = [(one.size, one.computed_tokens) for one in ended if one.computed_tokens is not None and one.total_seconds]
    prompts = PromptModel(seen)
    work = Work(
        running=tuple(_shape(one, tokens) for one, tokens in zip(taken.running, done, strict=True)),
        waiting=tuple(_waiting_shape(one, prompts) for one in (*ahead, *waiting)),
        waiting_count=len(taken.claimed) + queued,
        slots=slots,
    )
    lengths = LengthModel(
        [
            *(Answer(one.size, limit(one), one.tokens or 0, not one.was_cut) for one in ended),
            *(Answer(shape.prompt_tokens, shape.limit, shape.done_tokens, ended=False) for shape in work.running),
        ]
    )
    if not lengths:
        return None
    found = forecast(work, lengths, rate, most=_DRAWS, gusts=GUSTS)
    again = 1 + status.refused / max(_computed(status), 1)
    return BatchOutlook(found.scaled(again), work, in_front, lengths, rate, _is_int8(workers))


def _is_int8(workers: Iterable[Worker]) -> bool:
    setups = [worker.setup or {} for worker in workers]
    return all(one.get("engine") != "helix" or str(one.get("dtype", "")).startswith("int8") for one in setups)


def _rate(c: Connection, time: SlotTime, workers: Sequence[Worker], at_once: int) -> RateModel | None:
    """How fast the workers are together.

    The shape of the rate comes from their latest runs: what a token costs, and what a token of a prompt. Its level
    comes from the jobs that have ended last, as far as there are enough: the time in their slots has everything in it
    that a run does not know of these jobs.
    """
    costs = [StepCosts.from_json(one) for one in recent_step_costs(c, [worker.id for worker in workers], _RUNS)]
    rate = RateModel.of(costs)
    if time.jobs and (rate is None or time.jobs >= _ENOUGH):
        each = max(1, round(at_once / len(workers)))
        # From so short a time the level is known only as well as its gusts have averaged out.
        window = max(time.seconds / (each * len(workers)), 1.0)
        spread = sqrt((_UNREST * DRIFT) ** 2 + _JOBS_DIFFER**2 / time.jobs + GUSTS**2 / window)
        shape = RateModel.of_slots(each, time.token_seconds) if rate is None else rate
        expected = shape.slot_seconds(each, answers=time.answers, tokens=time.tokens, prompt_tokens=time.prompt_tokens)
        rate = shape.scaled(time.seconds / expected if expected > 0 else 1.0, spread)
    return None if rate is None else rate.together(len(workers))


def _busy_share(
    status: BatchStatus, own: Sequence[Glimpse], running: Sequence[Glimpse], slots: int, now: datetime
) -> float:
    """The share of the time in which slots were taken: between two jobs, each is empty for a moment.

    It is that of the latest jobs, while more waited than there are slots. A rest between two of their ends, of a paused
    batch or a closed worker, does not count.
    """
    ended = sorted(
        (one for one in own if one.total_seconds and one.finished_at is not None), key=lambda one: str(one.finished_at)
    )
    latest = ended[-LATEST:]
    waits = status.counts[JobState.QUEUED] >= slots
    if status.started_at is None or len(latest) < max(_ENOUGH, slots) or not waits:
        return 1.0
    ages = sum((now - one.claimed_at).total_seconds() for one in running if one.claimed_at is not None)
    begun = status.started_at
    if len(latest) < len(ended) and (before := ended[-LATEST - 1].finished_at) is not None:
        # As much was under way then as is now.
        begun, ages = before, 0.0
    spent = sum(one.total_seconds or 0.0 for one in latest)
    longest = _REST * spent / len(latest) + _REST
    moments = [begun, *(one.finished_at for one in latest if one.finished_at is not None), now]
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]
    span = slots * sum(max(0.0, min(gap, longest)) for gap in gaps)
    spent = spent * _computed(status) / len(ended) + ages
    return min(1.0, max(spent / span, _LEAST_BUSY)) if span > 0 else 1.0


def _waiting(c: Connection, status: BatchStatus, own: Sequence[Glimpse]) -> tuple[list[Glimpse], int]:
    """The jobs that wait, in the order in which they begin, each batch in proportion; and how many go first.

    Of other batches those count that begin before the last of this one.
    """
    queued = [one for one in own if one.state is JobState.QUEUED]
    mine = _answers(status, own)
    if not mine:
        return [], 0
    queued = queued or list(own)
    last = min(_order(one) for one in queued)
    sources = [(queued, mine)]
    others = [batch_id for batch_id in waiting_batches(c) if batch_id != status.id]
    for batch_id, other in batch_statuses(c, others).items():
        seen = [one for one in glimpses(c, batch_id, _OTHERS) if one.state is JobState.QUEUED]
        before = [one for one in seen if _order(one) > last]
        if before:
            sources.append((before, round(other.counts[JobState.QUEUED] * len(before) / len(seen))))
    total = sum(count for _, count in sources)
    thinner = min(1.0, MOST_JOBS / max(total, 1))
    chosen = [
        some[turn * len(some) // wanted]
        for some, count in sources
        for wanted in [max(1, round(count * thinner))]
        for turn in range(wanted)
    ]
    chosen.sort(key=_order, reverse=True)
    return chosen, total - mine


def _computed(status: BatchStatus) -> int:
    """Ended jobs that took no stored answer."""
    return status.finished - status.from_cache


def _answers(status: BatchStatus, own: Sequence[Glimpse]) -> int:
    """Answers that the batch's queued jobs ask for."""
    each = sum(one.choices for one in own) / max(len(own), 1)
    return round(status.counts[JobState.QUEUED] * max(each, 1.0))


def _shape(one: Glimpse, done_tokens: int = 0) -> JobShape:
    return JobShape(one.size, 0, limit(one), done_tokens)


def _waiting_shape(one: Glimpse, prompts: PromptModel) -> JobShape:
    """Further answers share the prompt of the first, so each has a part of it."""
    return JobShape(one.size, prompts.computed(one.size) // one.choices, limit(one))


def _order(one: Glimpse) -> tuple[int, int]:
    """The greater goes first."""
    return one.priority, -one.id


def _raised(one: Glimpse, to: int | None) -> Glimpse:
    return one if to is None or one.priority >= to else replace(one, priority=to)
