"""Signing in with an API key, and out again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from helix_jobs.api.page.paths import SIGN_IN, local_target
from helix_jobs.api.page.sessions import COOKIE, LIFETIME_SECONDS
from helix_jobs.api.page.templates import page

if TYPE_CHECKING:
    from helix_jobs.api.context import Context

_SEE_OTHER: Final = 303
_WRONG: Final = 401

router = APIRouter(include_in_schema=False)


@router.get(SIGN_IN)
def show_sign_in(request: Request) -> Response:
    """The form that takes a key."""
    context: Context = request.app.state.context
    target = local_target(request.query_params.get("next"))
    if context.access.is_open or context.sessions.owner(request.headers.get("cookie")) is not None:
        return RedirectResponse(target, _SEE_OTHER)
    return page(request, "sign_in.html", target=target, is_wrong=False)


@router.post(SIGN_IN)
def sign_in(
    request: Request, key: Annotated[str, Form()] = "", target: Annotated[str, Form(alias="next")] = "/"
) -> Response:
    """Begin a session, whose token the browser keeps in a cookie that no script reads."""
    context: Context = request.app.state.context
    target = local_target(target)
    if context.access.is_open:
        return RedirectResponse(target, _SEE_OTHER)
    owner = context.access.owner_of_key(key.strip().encode())
    if owner is None:
        return page(request, "sign_in.html", status=_WRONG, target=target, is_wrong=True)
    answer = RedirectResponse(target, _SEE_OTHER)
    answer.set_cookie(
        COOKIE,
        context.sessions.begin(owner),
        max_age=LIFETIME_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    """End the session."""
    context: Context = request.app.state.context
    context.sessions.end(request.headers.get("cookie"))
    answer = RedirectResponse("/", _SEE_OTHER)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
