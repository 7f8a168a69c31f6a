"""Refusals as a person sees them: a page instead of OpenAI's error object, or the way to sign in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse, RedirectResponse, Response

from helix_jobs.api.page.paths import EVENTS, sign_in_for
from helix_jobs.api.page.templates import render

if TYPE_CHECKING:
    from starlette.requests import Request

    from helix_jobs.api.problems import Problem

_SIGNED_OUT: Final = 401
_SEE_OTHER: Final = 303
_TITLES: Final = {
    400: "That cannot be done",
    401: "Nobody is signed in",
    403: "This request is refused",
    404: "There is nothing here",
    405: "That is not answered here",
    408: "The request stopped in the middle",
    409: "That does not fit the state of things",
    413: "That is too large",
    503: "Helix cannot answer now",
}


def refusal_page(request: Request, problem: Problem) -> Response:
    """What the page answers. Who opens a page without a session is sent to sign in, and then back."""
    path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
    is_part = "hx-request" in request.headers
    is_navigation = request.method in ("GET", "HEAD") and not is_part
    if problem.status == _SIGNED_OUT and is_navigation and path != EVENTS:
        return RedirectResponse(sign_in_for(f"{path}?{query}" if query else path), _SEE_OTHER)
    title = _TITLES.get(problem.status, "Something went wrong")
    # What htmx asked for is swapped into a page that has its frame.
    text = render(
        "_refusal.html" if is_part else "refusal.html", viewer=None, path=path, title=title, message=problem.message
    )
    headers = {name: value for name, value in problem.headers.items() if name != "WWW-Authenticate"}
    return HTMLResponse(text, status_code=problem.status, headers=headers)
