"""The viewer of the HTTP interface, and the description that it reads.

Swagger UI is vendored: FastAPI's own page would load it from another server, which a machine without the internet does
not reach. Trade-off: the wheel is 0.6 MB larger; in return nothing of another server's runs on the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from helix_jobs.api.page.paths import INTERFACE
from helix_jobs.api.page.templates import page

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter(include_in_schema=False)


@router.get(INTERFACE)
def show_interface(request: Request) -> Response:
    """The viewer."""
    return page(request, "interface.html")


@router.get(f"{INTERFACE}/openapi.json")
def describe(request: Request) -> Response:
    """The description for who has signed in; programs ask for /openapi.json with their key."""
    return JSONResponse(request.app.openapi())
