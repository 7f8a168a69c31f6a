"""Engines that ask a server of the tests, and their requests."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from helix_jobs.engine.endpoint.connection import Address, Connection
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.settings import Settings
from tests.unit.engine.tiny_models import tokenizer
from tests.unit.engine.tiny_settings import EOS, VOCAB_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.endpoint.answer_stream import StreamLimits
    from helix_jobs.engine.endpoint.endpoint_engine import EndpointEngine
    from helix_jobs.engine.request import GenerationResult
    from tests.faulty_server import FaultyServer

MOST_SECONDS = 20.0


def ids_of(text: str) -> list[int]:
    """The tiny tokenizer's ids of a text: one a character."""
    return list(tokenizer()(text)["input_ids"])


def text_of(token_ids: Any) -> str:
    return str(tokenizer().decode(token_ids, skip_special_tokens=True))


def tokenizer_folder(folder: Path) -> Path:
    """A model's directory without weights."""
    tokenizer().save_pretrained(folder)
    config = {"model_type": "unheard_of", "vocab_size": VOCAB_SIZE, "eos_token_id": EOS, "max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def settings_for(folder: Path, server: FaultyServer, **more: str) -> Settings:
    return Settings.from_environment(
        {
            "HELIX_HOME": str(folder / "home"),
            "HELIX_ENGINE": "endpoint",
            "HELIX_TARGET_MODEL": str(folder),
            "HELIX_ENDPOINT_URL": server.url,
            **more,
        }
    )


def prompt(text: str, request_id: str = "1", **fields: Any) -> Request:
    sampling = {name: fields.pop(name) for name in list(fields) if name in SamplingParams.__dataclass_fields__}
    params = SamplingParams(**{"max_tokens": 50, **sampling})
    given = {} if {"messages", "prompt_token_ids"} & fields.keys() else {"prompt": text}
    return Request(request_id=request_id, sampling_params=params, seed=fields.pop("seed", 5), **given, **fields)


def run(engine: EndpointEngine, *requests: Request) -> list[GenerationResult]:
    """The results in the order of the requests."""
    for request in requests:
        engine.add_request(engine.encode(request))
    found: dict[str, GenerationResult] = {}
    until = time.monotonic() + MOST_SECONDS
    while engine.has_unfinished():
        found.update((result.request_id, result) for result in engine.step())
        assert time.monotonic() < until, "the requests do not end"
    return [found[request.request_id] for request in requests]


def ask(engine: EndpointEngine, text: str, **fields: Any) -> GenerationResult:
    """The result of one prompt."""
    return run(engine, prompt(text, **fields))[0]


def connect(server: FaultyServer, limits: StreamLimits | None = None) -> Connection:
    """A connection that waits for a tenth of a second where others wait for a second or more."""
    return Connection(Address(server.url), lambda text: tuple(ids_of(text)), limits=limits, first_pause=0.05)
