"""One answer of a batch: its page, its texts whole, and its row as a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import RedirectResponse, Response

from helix_jobs.api.ids import known_id
from helix_jobs.api.page.answer_logprobs import shown_tokens
from helix_jobs.api.page.answer_prompt import asked_of, asked_text
from helix_jobs.api.page.answer_view import answer_view
from helix_jobs.api.page.answer_wish import AnswerWish
from helix_jobs.api.page.rows import title_of
from helix_jobs.api.page.templates import page
from helix_jobs.api.page.texts import json_text
from helix_jobs.api.page.viewer import viewer_of
from helix_jobs.errors import InvalidFieldError
from helix_jobs.results.export import result_row
from helix_jobs.results.logprobs import read_logprobs
from helix_jobs.storage.answer_neighbour import neighbour
from helix_jobs.storage.answer_records import Effort
from helix_jobs.storage.one_answer import read_answer
from helix_jobs.storage.seen_batches import require_seen
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.api.context import Context
    from helix_jobs.storage.one_answer import OneAnswer
    from helix_jobs.storage.records import JobResult

_SEE_OTHER: Final = 303
_MAX_LINE: Final = 2**31 - 1
_PATH: Final = "/batches/{batch_id}/answers/{line}"
_TEXTS: Final[Mapping[str, Callable[[JobResult], str]]] = {
    "answer": lambda result: result.output_text or "",
    "thinking": lambda result: result.reasoning_text or "",
    "calls": lambda result: json_text(result.tool_calls),
    "prompt": lambda result: asked_text(result.request),
}

# What looking for a neighbour may cost the database.
_EFFORT: Final = Effort()

router = APIRouter(include_in_schema=False)

Line = Annotated[int, Path(ge=1, le=_MAX_LINE)]
Choice = Annotated[int, Query(ge=0, le=_MAX_LINE)]


@router.get(_PATH)
def show_answer(request: Request, batch_id: str, line: Line, choice: Choice = 0) -> Response:
    """One job with one of its answers. The filter of the list that led to it stays in the address."""
    wish = AnswerWish.of(request.query_params)
    context: Context = request.app.state.context
    viewer = viewer_of(request)
    with context.database.read() as c:
        label = require_seen(c, known_id(batch_id), viewer.owner, sees_unowned=viewer.sees_unowned)
        status = batch_status(c, batch_id)
        found = read_answer(c, batch_id, line, choice)
    result = found.result
    logprobs, prompt_logprobs = (read_logprobs(result, data) for data in (result.logprobs, result.prompt_logprobs))
    return page(
        request,
        "answer.html",
        batch_id=batch_id,
        title=title_of(status, label),
        total=status.stored,
        found=found,
        job=result,
        asked=asked_of(result.request),
        answer=answer_view(result),
        logprobs=None if logprobs is None else shown_tokens(logprobs),
        prompt_logprobs=None if prompt_logprobs is None else shown_tokens(prompt_logprobs),
        here=f"/batches/{batch_id}/answers/{line}",
        choice_query=f"choice={choice}",
        wish=wish,
        kept=wish.parameters(),
        end=request.query_params.get("end"),
    )


@router.get(_PATH + "/next")
def go_on(request: Request, batch_id: str, line: Line) -> Response:
    """To the line behind it in the list that the address describes."""
    return _beside(request, batch_id, line, backwards=False)


@router.get(_PATH + "/previous")
def go_back(request: Request, batch_id: str, line: Line) -> Response:
    """To the line before it in that list."""
    return _beside(request, batch_id, line, backwards=True)


@router.get(_PATH + "/text")
def send_text(request: Request, batch_id: str, line: Line, part: str = "answer", choice: Choice = 0) -> Response:
    """A text as it is stored, whole, as plain text."""
    if part not in _TEXTS:
        raise InvalidFieldError("part", f"{part[:40]!r} is unknown", f"use one of {', '.join(_TEXTS)}")
    text = _TEXTS[part](_read(request, batch_id, line, choice).result)
    return Response(text.encode("utf-8", "replace"), media_type="text/plain; charset=utf-8")


@router.get(_PATH + "/row")
def send_row(request: Request, batch_id: str, line: Line, choice: Choice = 0) -> Response:
    """The answer's row as ``helix results`` writes it, as a file of JSON."""
    row = result_row(_read(request, batch_id, line, choice).result)
    name = f"{batch_id}-line-{line}{f'-answer-{choice}' if choice else ''}.json"
    # ASCII: a row that was changed by hand may hold what UTF-8 cannot encode.
    text = json.dumps(row, indent=2)
    return Response(
        text.encode() + b"\n",
        media_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _beside(request: Request, batch_id: str, line: int, *, backwards: bool) -> Response:
    """To the neighbour; to the list, which looks on by itself, where looking takes long; or back, if there is none."""
    context: Context = request.app.state.context
    viewer = viewer_of(request)
    wish = AnswerWish.of(request.query_params)
    with context.database.read() as c:
        require_seen(c, known_id(batch_id), viewer.owner, sees_unowned=viewer.sees_unowned)
        found = neighbour(c, batch_id, line, wish.query(), _EFFORT, backwards=backwards)
    there = f"/batches/{batch_id}/answers"
    if found.go_on is not None:
        place = {"before" if backwards else "after": found.go_on}
        return RedirectResponse(f"{there}{wish.parameters(**place)}", _SEE_OTHER)
    if found.line is not None:
        return RedirectResponse(f"{there}/{found.line}{wish.parameters()}", _SEE_OTHER)
    end = wish.parameters(end="first" if backwards else "last")
    return RedirectResponse(f"{there}/{line}{end}", _SEE_OTHER)


def _read(request: Request, batch_id: str, line: int, choice: int) -> OneAnswer:
    context: Context = request.app.state.context
    viewer = viewer_of(request)
    with context.database.read() as c:
        require_seen(c, known_id(batch_id), viewer.owner, sees_unowned=viewer.sees_unowned)
        return read_answer(c, batch_id, line, choice)
