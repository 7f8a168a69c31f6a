"""Records of a batch's list of answers: which part of it is asked for, and what was found. Frozen values, no SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from helix_jobs.storage.states import JobState


class AnswerOrder(StrEnum):
    """``line``: as in the file. ``newest``: what ended last comes first, and only what has ended."""

    LINE = "line"
    NEWEST = "newest"


class AnswerMark(StrEnum):
    """What may be special about a job."""

    THOUGHT = "thought"
    CALLED_TOOLS = "called_tools"
    BROKEN_FORM = "broken_form"
    REFUSED = "refused"
    RETAKEN = "retaken"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFilter:
    """Which jobs of a batch are shown: those that match everything that is given.

    Attributes:
        state: The job's state.
        error_code: Its error code.
        finish_reason: How one of its answers ended.
        mark: ``thought``: an answer has thinking apart. ``called_tools``: an answer calls a tool. ``broken_form``: an
            answer does not keep the form that was asked for. ``refused``: the job's own rule refused an answer.
            ``retaken``: the job was taken more than once.
        text: Stands in the custom id, the prompt, the metadata, an answer, its thinking, its tool calls or the error,
            in capital or small letters.
    """

    state: JobState | None = None
    error_code: str | None = None
    finish_reason: str | None = None
    mark: AnswerMark | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerQuery:
    """A page of a batch's list.

    Attributes:
        which: The filter.
        order: The order.
        limit: Most rows of the page.
        after: The page begins behind this place; a page names the places of its neighbours.
        before: The page ends in front of this place. Of ``after`` and ``before`` at most one is given.
    """

    which: AnswerFilter = field(default_factory=AnswerFilter)
    order: AnswerOrder = AnswerOrder.LINE
    limit: int = 50
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much one page may cost. Where no index finds the rows, they are looked through in slices.

    Attributes:
        seconds: No slice begins later than this after the first. The first is always looked through.
        first_slice: Rows of the first slice.
        first_texts: The same of a search, as nobody knows yet how large the texts are: each may have megabytes.
        largest_slice: Most rows of a later one.
        slice_bytes: Most bytes of texts that a slice is expected to have.
    """

    seconds: float = 0.5
    first_slice: int = 256
    first_texts: int = 16
    largest_slice: int = 8_192
    slice_bytes: int = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """A job as a row of the list, with the beginnings of its texts.

    Attributes:
        state: None where the row cannot be read; it then has its line alone.
        request: The beginning of the stored request's JSON.
        choices: Number of its answers. What follows is of the first.
        output_text: The answer's beginning.
        reasoning_text: The beginning of its thinking.
        called_tools: Whether it calls tools.
    """

    job_id: int
    line: int
    state: JobState | None
    custom_id: str | None = None
    attempts: int = 0
    tries: int = 0
    error_code: str | None = None
    error_message: str | None = None
    finished_at: datetime | None = None
    request: str | None = None
    choices: int = 0
    output_text: str | None = None
    reasoning_text: str | None = None
    called_tools: bool = False
    finish_reason: str | None = None
    is_valid: bool | None = None
    completion_tokens: int | None = None
    total_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPage:
    """A page of the list.

    Attributes:
        heads: Its rows.
        after: Where the next page begins; None: nothing comes behind this one.
        before: Where the page before ends; None: this is the first.
        looked_to: The line at which looking stopped for this page, as it had taken long enough; None if it did not
            stop. More may be found from there.
    """

    heads: tuple[AnswerHead, ...]
    after: str | None
    before: str | None
    looked_to: int | None = None
