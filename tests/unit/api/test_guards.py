"""The guard before the routes: host, origin, key, and the size and pace of a body."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.api import guards
from helix_jobs.api.access import Access
from helix_jobs.api.guards import Guard
from helix_jobs.api.page.sessions import Sessions

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

KEY = "a-key-of-some-length"
LOCAL = {"host": "localhost:8000"}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body, and answer with its length and the owner."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = {"length": length, "owner": scope["state"]["owner"]}
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def ask(
    parts: list[bytes] | None = None,
    path: str = "/v1/models",
    keys: str | None = None,
    limit: int = 100,
    **headers: str,
) -> tuple[int, Any]:
    """Status and body of the answer. A part that is empty never comes."""

    async def run() -> tuple[int, Any]:
        rest = list(parts or [b"{}"])
        sent: list[Message] = []

        async def receive() -> Message:
            part = rest.pop(0)
            if not part:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": part, "more_body": bool(rest)}

        async def send(message: Message) -> None:
            sent.append(message)

        given = {"host": "localhost:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
        raw = [(name.encode(), value.encode()) for name, value in given.items()]
        scope = {"type": "http", "path": path, "headers": raw, "method": "POST"}
        await Guard(echo, Access.of(keys, "127.0.0.1"), Sessions(), lambda _path: limit)(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    return asyncio.run(run())


def test_a_request_of_this_machine_passes() -> None:
    assert ask([b"12345", b"678"]) == (200, {"length": 8, "owner": "local"})


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "", "localhost.evil.example", "10.0.0.1:8000"])
def test_without_keys_another_name_of_this_address_is_refused(host: str) -> None:
    status, body = ask(host=host)
    assert (status, body["error"]["code"]) == (403, "host")
    assert ask(host=host, keys=KEY, authorization=f"Bearer {KEY}")[0] == 200, "a foreign page has no key"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999"])
def test_without_keys_a_page_of_another_site_is_refused(origin: str) -> None:
    assert ask(origin=origin)[0] == 403
    assert ask(origin="http://localhost:8000")[0] == 200


def test_a_key_is_asked_for_but_by_whoever_only_looks_whether_the_server_runs() -> None:
    assert ask(keys=KEY)[0] == 401
    assert ask(keys=KEY, authorization="Bearer wrong-key-of-some-length")[0] == 401
    assert ask(keys=KEY, authorization=f"Bearer {KEY}")[0] == 200
    assert ask(keys=KEY, path="/health")[0] == 200
    assert ask(keys=KEY, path="/metrics")[0] == 401


def test_a_body_is_refused_by_its_stated_length_and_by_its_true_one() -> None:
    status, body = ask(content_length="101")
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert ask([b"x" * 60, b"x" * 41])[0] == 413
    assert ask([b"x" * 60, b"x" * 40])[0] == 200
    assert ask(content_length="9" * 5000)[0] == 413


def test_a_body_that_stops_in_the_middle_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "BODY_SECONDS", 0.05)
    status, body = ask([b"half", b"", b"never"])
    assert (status, body["error"]["code"]) == (408, "timeout")


def test_a_body_that_drips_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "HEAD_START_SECONDS", 0.0)
    monkeypatch.setattr(guards, "BODY_PACE", 0.001)
    assert ask([b"h", b"a", b"lf"])[0] == 200, "a byte may take a thousand seconds"
    monkeypatch.setattr(guards, "BODY_PACE", 1e12)
    status, body = ask([b"h", b"a", b"lf"])
    assert (status, body["error"]["code"]) == (408, "timeout")
    assert "bytes a second" in body["error"]["message"]


@pytest.mark.parametrize("text", ["[", "[::1", "]", "[x]:8000", "localhost:port"])
def test_a_malformed_host_or_origin_is_refused(text: str) -> None:
    assert ask(host=text)[0] in {200, 403}
    assert ask(host=text, origin=f"http://{text}x")[0] == 403
    assert ask(origin=f"http://{text}")[0] == 403
