"""A real HTTP server for a box, on a thread of the test's process or in a process of its own."""

from __future__ import annotations

import subprocess
import sys
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
def server_process(box: Box, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``helix serve`` as a process of its own, and its address."""
    command = (sys.executable, "-m", "helix_jobs", "serve", "--port", "0")
    process = box.spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    with process:
        assert process.stdout is not None
        said = next((each for each in process.stdout if "Serving at" in each), "")
        yield process, said.split("Serving at ")[1].split("/v1")[0]
        process.kill()


@contextmanager
def asking(address: str, key: str | None = None) -> Iterator[httpx2.Client]:
    """A client of the server."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
        yield client


def chat(text: str = "Say hello", **fields: Any) -> dict[str, Any]:
    """A request's body."""
    return {"messages": [{"role": "user", "content": text}], **fields}
