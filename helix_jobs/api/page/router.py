"""add_page: the page's routes and files, added to the application."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.staticfiles import StaticFiles

from helix_jobs.api.page import (
    actions,
    answers,
    batch,
    batch_list,
    downloads,
    events,
    interface,
    one_answer,
    overview,
    signing_in,
    submit,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

_STATIC: Final = Path(__file__).parent / "static"
_ROUTERS: Final = (
    overview.router,
    batch_list.router,
    batch.router,
    answers.router,
    one_answer.router,
    actions.router,
    downloads.router,
    events.router,
    submit.router,
    interface.router,
    signing_in.router,
)


def add_page(app: FastAPI) -> None:
    """Add them. Their context is the application's."""
    for router in _ROUTERS:
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
