"""Figures: the server's metrics for Prometheus, and the middleware that counts requests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_UNKNOWN: Final = "unknown"
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class Figures:
    """The metrics.

    Args:
        open_requests: Tells how many generating requests are open.
    """

    def __init__(self, open_requests: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter(
            "helix_http_requests", "Requests, by route and status.", labels, registry=self._registry
        )
        self.seconds = Histogram(
            "helix_http_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        waiting = Gauge("helix_http_open_requests", "Generating requests that wait.", registry=self._registry)
        waiting.set_function(open_requests)

    def of_route(self, method: str, route: str, status: int) -> RouteFigures:
        """The figures of one kind of request. Whoever counts many keeps them: looking them up takes longer."""
        return RouteFigures(self.requests.labels(method, route, str(status)), self.seconds.labels(method, route))

    def text(self) -> tuple[bytes, str]:
        """The figures, and their media type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True)
class RouteFigures:
    """The figures of one method, route and status."""

    requests: Counter
    seconds: Histogram

    def count(self, seconds: float) -> None:
        """Count a request that took so long."""
        self.requests.inc()
        self.seconds.observe(seconds)


class Counted:
    """ASGI middleware that counts requests by their route, so that ids in paths make no new series.

    Args:
        app: The application behind it.
        figures: The metrics.
    """

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count, and pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            route = getattr(scope.get("route"), "path", _UNKNOWN)
            # A method is any word that a client makes up, and each would be a series of its own.
            method = scope["method"] if route != _UNKNOWN and scope["method"] in _METHODS else _UNKNOWN
            self._figures.of_route(method, route, status).count(time.perf_counter() - begun)
