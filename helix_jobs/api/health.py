"""For whoever watches the server: is it there, is it ready, and its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from helix_jobs.api.described import refusals
from helix_jobs.api.request_memo import Again, answer_again
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from helix_jobs.api.context import Context

HEALTH_PATH: Final = "/health"
READY_PATH: Final = "/ready"
# Monitors send no key, see ``guards.PUBLIC``.
_WITHOUT_KEY: Final[dict[str, Any]] = {"security": []}
_STANDING: Final = {
    "type": "object",
    "required": ["status", "database", "workers"],
    "properties": {
        "status": {"enum": ["ok", "no worker", "unavailable"]},
        "database": {"type": "boolean"},
        "workers": {"type": "integer", "minimum": 0},
    },
}
_READINESS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": words, "content": {"application/json": {"schema": _STANDING}}}
    for status, words in ((200, "They would."), (503, "They would not."))
}
_BODY: Final = {"status": "ok"}
_OK: Final = JSONResponse(_BODY)

router = APIRouter(tags=["health"])


@router.head(HEALTH_PATH, include_in_schema=False)
@router.get(HEALTH_PATH, summary="Whether the server runs", openapi_extra=_WITHOUT_KEY)
async def health() -> dict[str, str]:
    """Answers as long as the server runs; asks nobody else."""
    return _BODY


class Alive:
    """ASGI middleware that answers ``GET /health`` before it is routed.

    Load balancers ask often, and what routing does for a request takes several times as long as the answer.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "http" and scope["path"] == HEALTH_PATH and scope["method"] == "GET":
            scope["route"] = _ROUTE
            answer_again(scope.setdefault("state", {}), _AGAIN)
            await _OK(scope, receive, send)
        else:
            await self._app(scope, receive, send)


_AGAIN: Final = Again(HEALTH_PATH, lambda: bytes(_OK.body))
_ROUTE: Final = next(route for route in router.routes if getattr(route, "path", None) == HEALTH_PATH)


@router.head(READY_PATH, include_in_schema=False)
@router.get(READY_PATH, summary="Whether requests would be answered", responses=_READINESS, openapi_extra=_WITHOUT_KEY)
def ready(request: Request) -> JSONResponse:
    """Whether the database answers, and a worker runs."""
    context: Context = request.app.state.context
    try:
        workers = len(context.workers.alive())
    except HelixError:
        return JSONResponse({"status": "unavailable", "database": False, "workers": 0}, status_code=503)
    if workers and request.method == "GET":
        answer_again(request.scope["state"], Again(READY_PATH, lambda: _ready_again(context)))
    return JSONResponse(_standing(workers), status_code=200 if workers else 503)


def _standing(workers: int) -> dict[str, str | bool | int]:
    return {"status": "ok" if workers else "no worker", "database": True, "workers": workers}


def _ready_again(context: Context) -> bytes | None:
    workers = context.workers.at_hand()
    return bytes(JSONResponse(_standing(len(workers))).body) if workers else None


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=refusals(401))
def metrics(request: Request) -> Response:
    """The server's own figures; the workers serve theirs."""
    context: Context = request.app.state.context
    text, kind = context.figures.text()
    return Response(text, media_type=kind)
