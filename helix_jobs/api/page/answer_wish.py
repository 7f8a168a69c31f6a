"""Which part of a batch's answers an address asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from helix_jobs.errors import ErrorCode, InvalidFieldError
from helix_jobs.intake.strict_json import refuse_unstorable
from helix_jobs.reports.outcome_words import FINISHES
from helix_jobs.storage.answer_records import AnswerFilter, AnswerMark, AnswerOrder, AnswerQuery
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE_ROWS: Final = 50
# Parts of the page: rows below those that a search has found, and the first rows, for the batch's own page.
ROWS: Final = "rows"
PREVIEW: Final = "preview"
_PREVIEW_ROWS: Final = 8
FINISH_REASONS: Final = tuple(FINISHES)
MAX_SEARCH_CHARS: Final = 500
_MAX_LINE: Final = 2**31 - 1
_STATES: Final = frozenset(state.value for state in JobState)
_CODES: Final = frozenset(code.value for code in ErrorCode)
_MARKS: Final = frozenset(mark.value for mark in AnswerMark)
_MAX_PLACE_CHARS: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerWish:
    """What the address of a list says; an empty text says nothing.

    Attributes:
        q: The text to look for.
        show: A state, a finish reason or an error code.
        mark: What is special about the jobs.
        order: The order.
        line: The line to begin at.
        after: The place behind which the page begins.
        before: The place in front of which it ends.
        found: How many rows are shown already, where a search goes on below them.
        part: The part of the page that is asked for: empty for the table, ``rows`` or ``preview``.
    """

    q: str = ""
    show: str = ""
    mark: str = ""
    order: str = ""
    line: str = ""
    after: str = ""
    before: str = ""
    found: int = 0
    part: str = ""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> AnswerWish:
        """Read an address's parameters; those of others are left alone.

        Raises:
            InvalidFieldError: One is none of the values that it may have.
        """
        show, mark, order = values.get("show", ""), values.get("mark", ""), values.get("order", "")
        _check("show", show, _STATES | _CODES | set(FINISH_REASONS))
        _check("mark", mark, _MARKS)
        _check("order", order, {str(one) for one in AnswerOrder})
        part = values.get("part", "")
        _check("part", part, {ROWS, PREVIEW})
        q = values.get("q", "").strip()
        if len(q) > MAX_SEARCH_CHARS:
            raise InvalidFieldError("q", f"has {len(q):,} characters", f"look for at most {MAX_SEARCH_CHARS}")
        refuse_unstorable({"q": q})  # Postgres takes no text with NUL
        return cls(
            q=q,
            show=show,
            mark=mark,
            order=order,
            line=_whole("line", values.get("line", "").strip(), _MAX_LINE),
            after=values.get("after", "")[:_MAX_PLACE_CHARS],
            before=values.get("before", "")[:_MAX_PLACE_CHARS],
            part=part,
            found=int(_whole("found", values.get("found", ""), PAGE_ROWS) or 0),
        )

    def query(self) -> AnswerQuery:
        """The page that the database is asked for."""
        show = self.show or None
        after = self.after or None
        before = None if after is not None else self.before or None
        # What has not ended has no place among what ended last; choosing it must not end in a refusal.
        is_open = show in (JobState.QUEUED, JobState.RUNNING)
        order = AnswerOrder(self.order) if self.order and not is_open else AnswerOrder.LINE
        if after is None and before is None and self.line and order == AnswerOrder.LINE:
            after = str(max(0, int(self.line) - 1))
        return AnswerQuery(
            which=AnswerFilter(
                state=JobState(show) if show in _STATES else None,
                error_code=show if show in _CODES else None,
                finish_reason=show if show in FINISH_REASONS else None,
                mark=AnswerMark(self.mark) if self.mark else None,
                text=self.q or None,
            ),
            order=order,
            limit=_PREVIEW_ROWS if self.part == PREVIEW else max(1, PAGE_ROWS - self.found),
            after=after,
            before=before,
        )

    def parameters(self, **places: str) -> str:
        """The query string of the same list at another place; of the list's beginning where none is given."""
        same = {"q": self.q, "show": self.show, "mark": self.mark, "order": self.order}
        given = {name: value for name, value in {**same, **places}.items() if value}
        return f"?{urlencode(given)}" if given else ""

    @property
    def is_backwards(self) -> bool:
        """Whether the page is read from its end."""
        return bool(self.before) and not self.after

    @property
    def is_quick(self) -> bool:
        """Whether an index finds the rows: then they may be asked for every few seconds."""
        is_found = self.show in ("", JobState.FAILED, JobState.CANCELLED, JobState.RUNNING)
        return is_found and not (self.q or self.mark or self.found)

    @property
    def is_all(self) -> bool:
        """Whether every job of the batch is asked for."""
        return not (self.q or self.show or self.mark or self.order == AnswerOrder.NEWEST)


def _check(name: str, value: str, known: set[str] | frozenset[str]) -> None:
    if value and value not in known:
        raise InvalidFieldError(name, f"{value[:40]!r} is unknown", f"use one of {', '.join(sorted(known))}")


def _whole(name: str, value: str, largest: int) -> str:
    if not value:
        return ""
    if not (value.isascii() and value.isdecimal()):
        raise InvalidFieldError(name, f"{value[:40]!r} is no whole number", "give one from 1 on")
    return str(min(int(value[:20]), largest))
