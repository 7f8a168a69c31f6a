"""Server: what answers at the user's address, and how it is recognised."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import httpx2

from helix_jobs.engine.endpoint.faults import (
    ServerRefusesError,
    fault_of_status,
    fault_of_transport,
)
from helix_jobs.engine.endpoint.llama_server_dialect import LlamaServerDialect
from helix_jobs.engine.endpoint.openai_dialect import LlamaCppPythonDialect, OpenAIDialect
from helix_jobs.engine.endpoint.piece import UnreadableAnswerError, object_of
from helix_jobs.engine.endpoint.vllm_dialect import OLDEST, VllmDialect
from helix_jobs.errors import HelixError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.engine.endpoint.dialect import Dialect

# The largest description that is read.
_MOST_BYTES: Final = 4_000_000
_LLAMA_CPP_PYTHON: Final = "llama.cpp Python API"
# What describes a model in /v1/models for as long as it is served; vLLM's "created" is the time of the question.
_LASTING: Final = ("id", "root", "parent", "max_model_len", "meta")
_SHOWN: Final = 10
_NO_MODELS: Final = (
    "the server lists no models under /v1/models; set HELIX_ENDPOINT_URL to the address of an OpenAI-compatible server"
)
_NUMBERS: Final = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server and the model that it serves.

    Attributes:
        dialect: How it is asked.
        version: As it names it; empty if it does not.
        model: The model's name there.
        identity: What stays as it is for as long as this model is served.
        max_model_len: Prompt plus output tokens of a request at most; None if it does not say.
        slots: Requests that it computes at once; None if it does not say.
    """

    dialect: Dialect
    version: str
    model: str
    identity: str
    max_model_len: int | None = None
    slots: int | None = None

    @property
    def in_words(self) -> str:
        """Its kind and version, as results name them."""
        text = "" if self.dialect.has_token_ids else ", text both ways"
        return f"{self.dialect.name} {self.version}".rstrip() + text


async def recognise(client: httpx2.AsyncClient, model: str | None) -> Server:
    """Ask a server what it is.

    Args:
        client: Has the server's address, and the key.
        model: The model to ask for; None takes the only one there.

    Raises:
        ServerLostError: It does not answer.
        ServerBusyError: It asks to be asked later, as while it loads its model.
        ServerRefusesError: It refuses the key, serves no such model or several, or is too old.
    """
    try:
        listed = await _get(client, "/v1/models")
    except UnreadableAnswerError as error:
        raise ServerRefusesError(_NO_MODELS) from error
    entry = _chosen(listed, model)
    name = str(entry["id"])
    lasting = {key: entry[key] for key in _LASTING if key in entry}
    if entry.get("owned_by") == "vllm":
        await _check_health(client)
        version = _text(await _look(client, "/version"), "version")
        found = _NUMBERS.match(version)
        # A build from source may be called 0.1.dev.
        if found is not None and (0, 1) < (int(found[1]), int(found[2])) < OLDEST:
            raise ServerRefusesError(
                f"vLLM {version[:40]} does not have all that Helix asks for; use {OLDEST[0]}.{OLDEST[1]} or later"
            )
        context = _positive(entry.get("max_model_len"))
        return Server(
            dialect=VllmDialect(),
            version=version,
            model=name,
            identity=_spelt("vllm", lasting),
            max_model_len=context,
        )
    props = await _look(client, "/props")
    if isinstance(props.get("default_generation_settings"), dict):
        settings = props["default_generation_settings"]
        return Server(
            dialect=LlamaServerDialect(),
            version=_text(props, "build_info"),
            model=name,
            identity=_spelt("llama-server", {**lasting, "path": props.get("model_path")}),
            max_model_len=_positive(settings.get("n_ctx")),
            slots=_positive(props.get("total_slots")),
        )
    about = (await _look(client, "/openapi.json")).get("info")
    dialect: Dialect = OpenAIDialect()
    version, slots = "", None
    if isinstance(about, dict) and _LLAMA_CPP_PYTHON in str(about.get("title")):
        # It computes one answer at a time, and a further request interrupts the one before.
        dialect, version, slots = LlamaCppPythonDialect(), _text(about, "version"), 1
    return Server(dialect=dialect, version=version, model=name, identity=_spelt(dialect.name, lasting), slots=slots)


async def same_tokens(client: httpx2.AsyncClient, server: Server, text: str, token_ids: Sequence[int]) -> bool:
    """Whether the server splits a text into these tokens; True also where it does not tell.

    Raises:
        ServerLostError: It does not answer.
    """
    if server.dialect.name == VllmDialect.name:
        body: dict[str, Any] = {"model": server.model, "prompt": text, "add_special_tokens": False}
    elif server.dialect.name == LlamaServerDialect.name:
        body = {"content": text, "add_special": False}
    else:
        return True
    try:
        response = await client.post("/tokenize", json=body)
        found = response.json().get("tokens") if response.status_code == httpx2.codes.OK else None
    except httpx2.HTTPError as error:
        raise fault_of_transport(error) from error
    except (ValueError, AttributeError, RecursionError):
        return True
    return not isinstance(found, list) or found == list(token_ids)


def _chosen(listed: Mapping[str, Any], model: str | None) -> Mapping[str, Any]:
    """The entry of the model that is asked for.

    Raises:
        ServerRefusesError: There is no such entry, or there are several and none is named.
    """
    data = listed.get("data")
    entries = [one for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)] if data else []
    if not entries or not isinstance(data, list):
        raise ServerRefusesError(_NO_MODELS)
    if model is not None:
        found = [one for one in entries if one["id"] == model]
        if found:
            return found[0]
    elif len(entries) == 1:
        return entries[0]
    names = ", ".join(str(one["id"])[:80] for one in entries[:_SHOWN])
    more = f" and {len(entries) - _SHOWN} others" if len(entries) > _SHOWN else ""
    wrong = "the server serves several models" if model is None else f"the server serves no model {model!r:.80}"
    raise ServerRefusesError(f"{wrong}; set HELIX_ENDPOINT_MODEL to one of {names}{more}")


async def _get(client: httpx2.AsyncClient, path: str) -> Mapping[str, Any]:
    """A JSON object of the server's.

    Raises:
        ServerLostError, ServerBusyError, ServerRefusesError: As ``recognise``.
        UnreadableAnswerError: The answer is no JSON object.
    """
    try:
        async with client.stream("GET", path) as response:
            body = await bounded_body(response, _MOST_BYTES)
            status, headers = response.status_code, response.headers
    except httpx2.HTTPError as error:
        raise fault_of_transport(error) from error
    if status != httpx2.codes.OK:
        raise _as_refusal(fault_of_status(status, headers, body, datetime.now(UTC)))
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnreadableAnswerError(f"the server's answer to {path} is not JSON") from error
    return object_of(found)


async def _look(client: httpx2.AsyncClient, path: str) -> Mapping[str, Any]:
    """A JSON object that some servers have; empty if this one has not.

    Raises:
        ServerLostError, ServerBusyError: As ``recognise``.
    """
    try:
        return await _get(client, path)
    except (ServerRefusesError, UnreadableAnswerError):
        return {}


async def _check_health(client: httpx2.AsyncClient) -> None:
    """Ask a server whether it computes. vLLM lists its models for a while after its engine has died.

    Raises:
        ServerLostError, ServerBusyError: It does not.
    """
    try:
        response = await client.get("/health")
    except httpx2.HTTPError as error:
        raise fault_of_transport(error) from error
    if httpx2.codes.is_server_error(response.status_code):
        raise fault_of_status(response.status_code, response.headers, b"", datetime.now(UTC))


async def bounded_body(response: httpx2.Response, most: int) -> bytes:
    """A response's body, or as much of its beginning as is read."""
    parts: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        parts.append(chunk[: most - size])
        size += len(parts[-1])
        if size >= most:
            break
    return b"".join(parts)


def _as_refusal(error: HelixError) -> HelixError:
    return ServerRefusesError(str(error)) if isinstance(error, InvalidRequestError) else error


def _spelt(kind: str, lasting: Mapping[str, Any]) -> str:
    return json.dumps([kind, lasting], sort_keys=True)


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    return " ".join(value.split())[:80] if isinstance(value, str) and value.isprintable() else ""


def _positive(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
