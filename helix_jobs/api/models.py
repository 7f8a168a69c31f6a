"""Routes that list models: what the workers serve, and the adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from helix_jobs.api.described import refusals
from helix_jobs.api.problems import Problem

if TYPE_CHECKING:
    from helix_jobs.api.context import Context

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models", responses=refusals(401, 503))
def list_models(request: Request) -> dict[str, Any]:
    """The target models of the workers, and the adapters that requests may choose by name."""
    return {"object": "list", "data": _models(request.app.state.context)}


@router.get("/v1/models/{model:path}", summary="Look up a model", responses=refusals(401, 404, 503))
def get_model(request: Request, model: str) -> dict[str, Any]:
    """One of them."""
    for found in _models(request.app.state.context):
        if found["id"] == model:
            return found
    raise Problem(404, f"there is no model {model[:200]!r}; GET /v1/models lists them", code="model_not_found")


def _models(context: Context) -> list[dict[str, Any]]:
    """Each model once. Without a worker, the model that the settings name."""
    created: dict[str, int] = {}
    for worker in context.workers.alive():
        created.setdefault(worker.target_model, int(worker.started_at.timestamp()))
    names = created or {context.settings.target_model: 0}
    adapters = {name: 0 for name, _ in context.settings.adapters}
    return [
        {"id": name, "object": "model", "created": at, "owned_by": "helix"}
        for name, at in {**names, **adapters}.items()
    ]
