"""A model hub of this machine: a real HTTP server that answers the paths that the hub's library asks."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

COMMIT = "a" * 40
_CHUNK = 1 << 16


@dataclass
class LocalHub:
    """What the hub holds, and what was asked of it.

    Attributes:
        url: Its address, as ``HF_ENDPOINT`` takes it.
        repositories: Name -> file name -> content, or the size of a file that nobody may fetch. The name of a data set
            begins with ``datasets/``.
        kinds: Name -> number of weights by type, as the hub counts them.
        gated: Names whose licence nobody has accepted.
        has_ranges: Whether it sends the part of a file that was asked for, instead of the whole.
        fetched: Names of the files that were fetched, whole or in part.
        sent: Bytes that were sent of files.
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes | int]] = field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    has_ranges: bool = True
    fetched: list[str] = field(default_factory=list)
    sent: int = 0

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
        if path.startswith(("api/models/", "api/datasets/")):
            asked = path.removeprefix("api/models/").removeprefix("api/")
            name, _, of_tree = asked.partition("/revision/")[0].partition("/tree/")
            if name in hub.repositories:
                self._send(json.dumps(_tree(hub, name) if of_tree else _info(hub, name)).encode())
            else:
                self._refuse(401, "RepoNotFound")
            return
        name, _, rest = path.partition("/resolve/")
        file = rest.partition("/")[2]
        content = hub.repositories.get(name, {}).get(file)
        if name not in hub.repositories:
            self._refuse(401, "RepoNotFound")
        elif name in hub.gated:
            self._refuse(403, "GatedRepo")
        elif isinstance(content, bytes):
            if self.command == "GET":
                hub.fetched.append(file)
            self._send_file(content)
        else:
            self._refuse(404, "EntryNotFound")

    def _send_file(self, content: bytes) -> None:
        tag, wanted = f'"{hashlib.sha256(content).hexdigest()}"', self.headers.get("Range")
        if wanted is None or not self.server.hub.has_ranges:
            self._send(content, ETag=tag)
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        where = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        self._send(part, 206, ETag=tag, **{"Content-Range": where})

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "GET":
            return
        for start in range(0, len(content), _CHUNK):
            with suppress(ConnectionError):  # whoever asked has read enough
                self.wfile.write(content[start : start + _CHUNK])
                self.server.hub.sent += len(content[start : start + _CHUNK])
                continue
            self.close_connection = True
            return

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


@contextmanager
def library_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[LocalHub]:
    """Serve a hub to the hub's library, which reads its address from HF_ENDPOINT when it is imported."""
    with serve_hub() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield made


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
