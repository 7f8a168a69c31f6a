"""Routes that list models: what the workers serve, and the adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from helix_jobs.api.described import refusals
from helix_jobs.api.problems import Problem
from helix_jobs.api.request_memo import Again, answer_again

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.api.context import Context
    from helix_jobs.storage.records import Worker

_PATH: Final = "/v1/models"

router = APIRouter(tags=["models"])


@router.get(_PATH, summary="List the models", responses=refusals(401, 503))
def list_models(request: Request) -> dict[str, Any]:
    """The target models of the workers, and the adapters that requests may choose by name."""
    context: Context = request.app.state.context
    found = _list(context, context.workers.alive())
    answer_again(request.scope["state"], Again(_PATH, lambda: _list_again(context)))
    return found


@router.get(_PATH + "/{model:path}", summary="Look up a model", responses=refusals(401, 404, 503))
def get_model(request: Request, model: str) -> dict[str, Any]:
    """One of them."""
    context: Context = request.app.state.context
    for found in _models(context, context.workers.alive()):
        if found["id"] == model:
            return found
    raise Problem(404, f"there is no model {model[:200]!r}; GET /v1/models lists them", code="model_not_found")


def _list(context: Context, workers: Sequence[Worker]) -> dict[str, Any]:
    return {"object": "list", "data": _models(context, workers)}


def _list_again(context: Context) -> bytes | None:
    workers = context.workers.at_hand()
    return None if workers is None else bytes(JSONResponse(_list(context, workers)).body)


def _models(context: Context, workers: Sequence[Worker]) -> list[dict[str, Any]]:
    """Each model once. Without a worker, the model that the settings name."""
    created: dict[str, int] = {}
    for worker in workers:
        created.setdefault(worker.target_model, int(worker.started_at.timestamp()))
    names = created or {context.settings.target_model: 0}
    adapters = {name: 0 for name, _ in context.settings.adapters}
    return [
        {"id": name, "object": "model", "created": at, "owned_by": "helix"}
        for name, at in {**names, **adapters}.items()
    ]
