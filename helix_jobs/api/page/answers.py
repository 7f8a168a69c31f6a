"""A batch's answers: the list with search and filters, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from helix_jobs.api.ids import known_id
from helix_jobs.api.page.answer_rows import AnswerRow, answer_row
from helix_jobs.api.page.answer_wish import FINISH_REASONS, PAGE_ROWS, PREVIEW, ROWS, AnswerWish
from helix_jobs.api.page.rows import title_of
from helix_jobs.api.page.templates import page, render
from helix_jobs.api.page.viewer import viewer_of
from helix_jobs.errors import ErrorCode
from helix_jobs.reports.outcome_words import FINISHES
from helix_jobs.storage.answer_list import list_answers
from helix_jobs.storage.answer_records import AnswerMark, AnswerOrder, Effort
from helix_jobs.storage.one_answer import line_of
from helix_jobs.storage.seen_batches import require_seen
from helix_jobs.storage.states import JobState
from helix_jobs.storage.status import batch_status
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from helix_jobs.api.context import Context
    from helix_jobs.storage.records import BatchStatus

_MARK_WORDS: Final[Mapping[AnswerMark, str]] = {
    AnswerMark.THOUGHT: "with thinking",
    AnswerMark.CALLED_TOOLS: "with tool calls",
    AnswerMark.BROKEN_FORM: "form not kept",
    AnswerMark.REFUSED: "an answer was refused or asked for again",
    AnswerMark.RETAKEN: "taken more than once",
}
# What one page may cost the database.
EFFORT: Final = Effort()
# Behind every line that there can be.
_END: Final = str(2**31 - 1)
# What htmx asks for -> what it is sent: a whole table; rows below those that a search has found; a batch's first rows.
_PARTS: Final = {"": "_answer_table.html", ROWS: "_answer_more.html", PREVIEW: "_answer_preview.html"}

router = APIRouter(include_in_schema=False)

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerList:
    """A page of the list.

    Attributes:
        batch_id: The batch.
        title: What it is called.
        wish: What was asked for.
        shows: Headings and options of the filter by outcome.
        marks: Options of the filter by what is special.
        rows: The rows.
        said: How much there is, in words.
        exact_line: The line whose custom id is exactly what is looked for.
        previous: The query string of the page before; None on the first.
        next: The same of the next page; None on the last.
        go_on: The query string from where the search goes on; None where it has looked through everything.
        found: Rows that this search has found so far.
        looked: How many lines it has looked through so far.
        total: Lines of the batch, as far as they are stored.
        moves: Whether its jobs have not all ended.
    """

    batch_id: str
    title: str
    wish: AnswerWish
    shows: tuple[tuple[str, Options], ...]
    marks: Options
    rows: tuple[AnswerRow, ...]
    said: str
    exact_line: int | None
    previous: str | None
    next: str | None
    go_on: str | None
    found: int
    looked: int
    total: int
    moves: bool

    @property
    def first(self) -> str:
        """The query string of the first page."""
        return self.wish.parameters()

    @property
    def last(self) -> str:
        """The query string of the last page."""
        return self.wish.parameters(before=_END if self.wish.order != AnswerOrder.NEWEST else "0-0")

    @property
    def poll(self) -> str | None:
        """The address to which the page asks now and then for these rows anew; None if they stay as they are."""
        if not (self.moves and self.wish.is_quick):
            return None
        query = self.wish.query()
        places = {name: value for name, value in (("after", query.after), ("before", query.before)) if value}
        part = {"part": self.wish.part} if self.wish.part else {}
        return f"/batches/{self.batch_id}/answers{self.wish.parameters(**places, **part)}"

    @property
    def goes_on_by_itself(self) -> bool:
        """Whether the search goes on below its rows, until a page is full. Backwards, they would not be in order."""
        return self.go_on is not None and self.found < PAGE_ROWS and not self.wish.is_backwards


@router.get("/batches/{batch_id}/answers")
def show_answers(request: Request, batch_id: str) -> Response:
    """A page of a batch's answers; of a request that htmx sends, what is swapped in."""
    context: Context = request.app.state.context
    viewer = viewer_of(request)
    wish = AnswerWish.of(request.query_params)
    with context.database.read() as c:
        label = require_seen(c, known_id(batch_id), viewer.owner, sees_unowned=viewer.sees_unowned)
        status = batch_status(c, batch_id)
        found = list_answers(c, batch_id, wish.query(), EFFORT)
        exact_line = line_of(c, batch_id, wish.q) if wish.q and not wish.found else None
    backwards = wish.is_backwards
    rows = tuple(answer_row(head) for head in found.heads)
    stopped = found.looked_to is not None
    place_ahead = found.before if backwards else found.after
    listed = AnswerList(
        batch_id=batch_id,
        title=title_of(status, label),
        wish=wish,
        shows=_shows(status, wish.show),
        marks=tuple((mark.value, words) for mark, words in _MARK_WORDS.items()),
        rows=rows,
        said=_said(wish, status, rows, stopped=stopped),
        exact_line=exact_line,
        previous=None if found.before is None or (stopped and backwards) else wish.parameters(before=found.before),
        next=None if found.after is None or (stopped and not backwards) else wish.parameters(after=found.after),
        go_on=None
        if not stopped or place_ahead is None
        else wish.parameters(**{"before" if backwards else "after": place_ahead}),
        found=wish.found + len(rows),
        looked=_looked(found.looked_to, status, is_descending=backwards != (wish.order == AnswerOrder.NEWEST)),
        total=status.stored,
        moves=not status.done,
    )
    if "hx-request" not in request.headers:
        return page(request, "answers.html", listed=listed, is_part=False, is_preview=False)
    is_preview = wish.part == PREVIEW
    return HTMLResponse(render(_PARTS[wish.part], listed=listed, is_part=not is_preview, is_preview=is_preview))


def _shows(status: BatchStatus, chosen: str) -> tuple[tuple[str, Options], ...]:
    """The options of the filter by outcome, with their numbers where they are known."""
    states = tuple((state.value, f"{state.value} ({status.counts[state]:,})") for state in JobState)
    finishes = tuple(
        (reason, FINISHES[reason] + (f" ({counted(status.cut_off, 'answer')})" if reason == "length" else ""))
        for reason in FINISH_REASONS
    )
    counts = {**({chosen: 0} if chosen in {code.value for code in ErrorCode} else {}), **status.error_counts}
    codes = tuple((code, f"{code.replace('_', ' ')} ({count:,})") for code, count in sorted(counts.items()))
    return (("State", states), ("Answers", finishes), *((("Failed with", codes),) if codes else ()))


def _said(wish: AnswerWish, status: BatchStatus, rows: tuple[AnswerRow, ...], *, stopped: bool) -> str:
    """How much there is. A number that would have to be counted is not said."""
    found = wish.found + len(rows)
    if not found:
        return "Nothing found so far" if stopped else "Nothing found"
    if wish.found or not rows:
        return f"{counted(found, 'job')} found{' so far' if stopped else ''}"
    lines = sorted((rows[0].line, rows[-1].line))
    where = f"line {lines[0]:,}" if lines[0] == lines[1] else f"lines {lines[0]:,} to {lines[1]:,}"
    if wish.q or wish.mark or wish.show in FINISH_REASONS:
        return f"{counted(len(rows), 'job')} found, {where}"
    known = {state.value: status.counts[state] for state in JobState} | dict(status.error_counts)
    total = known.get(wish.show, 0) if wish.show else status.stored
    return f"{where[0].upper()}{where[1:]}, {counted(len(rows), 'job')} of {max(total, len(rows)):,}"


def _looked(line: int | None, status: BatchStatus, *, is_descending: bool) -> int:
    """How many lines a search has looked through, by where it stopped: by their numbers, so nearly."""
    if line is None:
        return status.stored
    return max(0, status.stored - line) if is_descending else min(line, status.stored)
