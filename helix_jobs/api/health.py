"""Routes for whoever watches the server: is it there, is it ready, and its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from helix_jobs.api.described import refusals
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from helix_jobs.api.context import Context

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Whether the server runs")
async def health() -> dict[str, str]:
    """Answers as long as the server runs; asks nobody else."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Whether requests would be answered", responses={503: {"description": "They would not."}})
def ready(request: Request) -> JSONResponse:
    """Whether the database answers, and a worker runs."""
    context: Context = request.app.state.context
    try:
        workers = len(context.workers.alive())
    except HelixError:
        return JSONResponse({"status": "unavailable", "database": False, "workers": 0}, status_code=503)
    body = {"status": "ok" if workers else "no worker", "database": True, "workers": workers}
    return JSONResponse(body, status_code=200 if workers else 503)


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=refusals(401))
def metrics(request: Request) -> Response:
    """The server's own figures; the workers serve theirs."""
    context: Context = request.app.state.context
    text, kind = context.figures.text()
    return Response(text, media_type=kind)
