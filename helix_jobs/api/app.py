"""create_app: the FastAPI application."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from helix_jobs._version import __version__
from helix_jobs.api import batches, files, generation, health, models
from helix_jobs.api.batch_readings import Forgetting
from helix_jobs.api.figures import Counted
from helix_jobs.api.guards import MAX_BODY_BYTES, Guard
from helix_jobs.api.page.headers import PageHeaders
from helix_jobs.api.page.paths import SUBMIT, is_page
from helix_jobs.api.page.refusals import refusal_page
from helix_jobs.api.page.router import add_page
from helix_jobs.api.problems import Problem, error_object, problem_of
from helix_jobs.api.request_rate import Paced, RequestRate
from helix_jobs.api.uploads import max_upload_bytes
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from helix_jobs.api.context import Context

logger = logging.getLogger(__name__)

_NOT_FOUND: Final = 404
_NOT_ALLOWED: Final = 405
_METHODS: Final = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_DESCRIPTION: Final = (
    "OpenAI's interface to Helix: requests become jobs of the queue, and answers rows of the results table."
)


class _Described(FastAPI):
    """The application, whose description says that requests carry a key."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI description."""
        found = super().openapi()
        found.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        # Without keys none has to be sent, see ``Access``.
        found["security"] = [{"key": []}] if not self.state.context.access.is_open else [{}, {"key": []}]
        return found


def create_app(context: Context) -> FastAPI:
    """Build the application. Its routes find the context at ``app.state.context``."""
    app = _Described(title="Helix", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.context = context
    for router in (generation.router, files.router, batches.router, models.router, health.router):
        app.include_router(router)
    add_page(app)
    app.add_exception_handler(Problem, _refused)
    app.add_exception_handler(HelixError, _failed)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(Exception, _broken)
    upload_bytes = max_upload_bytes(context.settings.max_upload_mb)

    def limit_of(path: str) -> int:
        return upload_bytes if path in (files.FILES_PATH, SUBMIT) else MAX_BODY_BYTES

    app.add_middleware(Forgetting, readings=context.readings)
    app.add_middleware(health.Alive)
    if context.settings.requests_per_minute is not None:
        app.add_middleware(Paced, rate=RequestRate(context.settings.requests_per_minute))
    app.add_middleware(Guard, access=context.access, sessions=context.sessions, limit_of=limit_of)
    app.add_middleware(PageHeaders)
    app.add_middleware(Counted, figures=context.figures)
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem), "registered for it"
    if is_page(request.scope["path"]):
        return refusal_page(request, error)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HelixError), "registered for it"
    problem = problem_of(error)
    server = 500  # the first of the server's own
    if problem.status >= server:
        logger.warning("%s %s: %s", request.method, _route(request), problem.message)
    return _refused(request, problem)


def _broken(request: Request, _error: Exception) -> Response:
    """An error that nobody expected; uvicorn logs it."""
    return _refused(request, Problem(500, "the server failed; its log has more", code="server_error"))


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for it"
    first: dict[str, Any] = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    problem = Problem(400, f"{'.'.join(place)}: {first['msg']}", param=place[-1], code="invalid_request")
    return _refused(request, problem)


def _unrouted(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException), "registered for it"
    path = request.scope["path"][:200]
    message, headers = error.detail, dict(error.headers or {})
    # Below a mount the rest of the path alone would be looked for; what is mounted there says its methods itself.
    if error.status_code == _NOT_ALLOWED and not request.scope.get("root_path"):
        headers["Allow"] = ", ".join(_methods_of(request))
    if is_page(path):
        page = refusal_page(request, Problem(error.status_code, f"{path} is not a page; begin with the overview"))
        page.headers.update(headers)
        return page
    if error.status_code == _NOT_FOUND:
        message = f"there is no {request.method} {path}; GET /openapi.json lists what there is"
    elif error.status_code == _NOT_ALLOWED:
        message = f"{request.method[:20]} is not answered at {path}; ask with {headers['Allow']}"
    body = {"error": error_object(error.status_code, message, None, None)}
    return JSONResponse(body, status_code=error.status_code, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """The methods that any route of the request's path answers; starlette names those of the first one alone."""
    routes = request.app.router.routes

    def answers(method: str) -> bool:
        return any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)

    return [method for method in _METHODS if answers(method)]


def _route(request: Request) -> str:
    """The route's pattern: a path may hold names that do not belong into a log."""
    return getattr(request.scope.get("route"), "path", "an unknown path")
