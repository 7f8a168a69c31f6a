"""What to do about a deadline: nothing, make the batch more urgent, or say that it is missed and what would help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Final

from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.forecast.forecast import forecast
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from helix_jobs.outlook.batch_outlook import BatchOutlook

# Below MAX_PRIORITY, which is that of requests that a person waits for.
HIGHEST: Final = MAX_PRIORITY - 1
# From this probability on a deadline counts as kept, and from this one down as missed.
_KEPT: Final = 0.8
MISSED: Final = 0.5
_DRAWS: Final = 30
_HALVINGS: Final = 6


@dataclass(frozen=True, slots=True)
class Raise:
    """Let the batch's jobs have this priority."""

    to: int


@dataclass(frozen=True, slots=True)
class Miss:
    """Say that the deadline will probably be missed: this likely it is kept."""

    probability: float


def decide(outlook: BatchOutlook, seconds: float, priority: int) -> Raise | Miss | None:
    """What to do about a deadline; None for nothing.

    Args:
        outlook: The batch's.
        seconds: Until the deadline, without rests.
        priority: The lowest of its waiting jobs.

    Trade-off: one step at a time keeps a batch from pushing others aside for longer than its deadline needs, and may
    come late where the forecast was far too short.
    """
    probability = outlook.forecast.probability_within(seconds)
    if probability >= _KEPT:
        return None
    if outlook.in_front and priority < HIGHEST:
        return Raise(priority + 1)
    return Miss(probability) if probability < MISSED else None


@dataclass(frozen=True, slots=True)
class Remedies:
    """What would let a batch keep its deadline, each alone; None where that alone would not, or is so already.

    Attributes:
        fewer_rows: So many waiting rows less.
        max_tokens: This limit for every answer that waits.
        int8: Weights of 8 bits, as far as they are faster.
    """

    fewer_rows: int | None
    max_tokens: int | None
    int8: bool

    @property
    def in_words(self) -> str:
        """As the end of a sentence."""
        found = []
        if self.fewer_rows is not None:
            found.append(f"{counted(self.fewer_rows, 'row')} less")
        if self.max_tokens is not None:
            found.append(f"max_tokens of {self.max_tokens:,}")
        if self.int8:
            found.append("--dtype int8 for the worker, if that is faster here")
        return " or ".join(found) or "more time, or another worker"


def remedies(outlook: BatchOutlook, seconds: float, *, is_int8: bool) -> Remedies:
    """What would let the median of the forecast keep the time.

    Args:
        outlook: The batch's.
        seconds: Until the deadline, without rests.
        is_int8: The workers' weights have 8 bits, or are not theirs to choose.
    """
    waiting = outlook.work.waiting_count
    fewer = None
    if 0 < seconds < outlook.forecast.median and waiting:
        fewer = min(waiting, ceil(waiting * (1 - seconds / outlook.forecast.median)))
    shorter = _shorter(outlook, seconds) if seconds > 0 else None
    return Remedies(fewer if fewer != waiting else None, shorter, not is_int8)


def _shorter(outlook: BatchOutlook, seconds: float) -> int | None:
    """The largest limit of tokens, of a few that are tried, with which the time is kept."""
    low, high = 0, max((one.limit for one in outlook.work.waiting), default=0)
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        if middle <= low:
            break
        shorter = tuple(replace(one, limit=min(one.limit, middle)) for one in outlook.work.waiting)
        work = replace(outlook.work, waiting=shorter)
        if forecast(work, outlook.lengths, outlook.rate, most=_DRAWS).median <= seconds:
            low = middle
        else:
            high = middle
    return low or None
