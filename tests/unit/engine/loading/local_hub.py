"""A model hub of this machine: a real HTTP server that answers the paths that the hub's library asks."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "a" * 40


@dataclass
class LocalHub:
    """What the hub holds, and what was asked of it.

    Attributes:
        url: Its address, as ``HF_ENDPOINT`` takes it.
        repositories: Name -> file name -> content, or the size of a file that nobody may fetch.
        kinds: Name -> number of weights by type, as the hub counts them.
        gated: Names whose licence nobody has accepted.
        fetched: Names of the files that were fetched.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes | int]] = field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)

    def add(self, name: str, config: dict[str, Any], **files: bytes | int) -> None:
        """Add a repository; ``model_safetensors`` is the file ``model.safetensors``."""
        named = {file.replace("_safetensors", ".safetensors").replace("_json", ".json"): c for file, c in files.items()}
        self.repositories[name] = {"config.json": json.dumps(config).encode(), **named}


class _HubServer(ThreadingHTTPServer):
    def __init__(self, hub: LocalHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _answer(self) -> None:
        hub, path = self.server.hub, self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            name, _, of_tree = path.removeprefix("api/models/").partition("/revision/")[0].partition("/tree/")
            if name in hub.repositories:
                self._send(json.dumps(_tree(hub, name) if of_tree else _info(hub, name)).encode())
            else:
                self._refuse(401, "RepoNotFound")
            return
        name, _, rest = path.partition("/resolve/")
        file = rest.partition("/")[2]
        content = hub.repositories.get(name, {}).get(file)
        if name in hub.gated:
            self._refuse(403, "GatedRepo")
        elif isinstance(content, bytes):
            if self.command == "GET":
                hub.fetched.append(file)
            self._send(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')
        else:
            self._refuse(404, "EntryNotFound")

    def _send(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve_hub() -> Iterator[LocalHub]:
    """Serve a hub on a free port until the context ends."""
    hub = LocalHub()
    server = _HubServer(hub)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _info(hub: LocalHub, name: str) -> dict[str, Any]:
    siblings = [{"rfilename": file["path"], "size": file["size"]} for file in _tree(hub, name)]
    info: dict[str, Any] = {"id": name, "sha": COMMIT, "siblings": siblings}
    if kinds := hub.kinds.get(name):
        info["safetensors"] = {"parameters": kinds, "total": sum(kinds.values())}
    return info


def _tree(hub: LocalHub, name: str) -> list[dict[str, Any]]:
    sizes = {
        file: content if isinstance(content, int) else len(content) for file, content in hub.repositories[name].items()
    }
    return [{"type": "file", "path": file, "size": size, "oid": COMMIT} for file, size in sizes.items()]
