"""The application's answer to errors that nobody expected."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from helix_jobs.api.access import Access
from helix_jobs.api.app import create_app
from helix_jobs.api.batch_readings import BatchReadings
from helix_jobs.api.figures import Figures
from helix_jobs.api.page.sessions import Sessions


class Broken:
    """Fails in a way that the program does not know."""

    async def latest(self) -> None:
        raise RuntimeError

    def alive(self) -> None:
        raise RuntimeError


async def asked(path: str) -> list[dict[str, Any]]:
    """The messages by which a server whose parts are broken answers."""
    context: Any = SimpleNamespace(
        settings=SimpleNamespace(max_upload_mb=1, requests_per_minute=None),
        access=Access(),
        sessions=Sessions(),
        readings=BatchReadings(lambda _: ("", {})),
        figures=Figures(lambda: 0),
        workers=Broken(),
        board=Broken(),
    )
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "state": {},
    }
    with suppress(RuntimeError):  # raised again for the log
        await create_app(context)(scope, receive, send)
    return sent


@pytest.mark.parametrize("path", ["/v1/models", "/"])
def test_an_error_that_nobody_expected_has_the_form_of_a_refusal(path: str) -> None:
    start, body = asyncio.run(asked(path))
    assert start["status"] == 500
    if path == "/":
        assert b"its log has more" in body["body"]
    else:
        error = json.loads(body["body"])["error"]
        assert (error["type"], error["param"], error["code"]) == ("server_error", None, "server_error")
