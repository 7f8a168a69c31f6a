"""A real HTTP server for a box, on a thread of the test's process."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2

from helix_jobs.api.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker_box import Box


@contextmanager
def serving(box: Box, **settings: Any) -> Iterator[str]:
    """The address of a server with these settings."""
    database = box.database()
    server = Server(replace(box.settings, serve_port=0, **settings), database)
    thread = threading.Thread(target=server.run, name="test-server")
    thread.start()
    try:
        yield server.address
    finally:
        server.stop()
        thread.join(30)
        database.dispose()
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def asking(address: str, key: str | None = None) -> Iterator[httpx2.Client]:
    """A client of the server."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
        yield client


def chat(text: str = "Say hello", **fields: Any) -> dict[str, Any]:
    """A request's body."""
    return {"messages": [{"role": "user", "content": text}], **fields}
