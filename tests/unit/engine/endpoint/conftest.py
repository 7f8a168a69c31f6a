from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.engine.endpoint.endpoint_engine import EndpointEngine
from helix_jobs.engine.loading.bare_tokenizer import open_tokenizer
from helix_jobs.engine.loading.load_endpoint import served_text
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from tests.faulty_server import FaultyServer
from tests.unit.engine.endpoint.served import connect, ids_of, text_of, tokenizer_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helix_jobs.engine.endpoint.answer_stream import StreamLimits
    from helix_jobs.engine.endpoint.served_text import ServedText


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_text(model_folder: Path) -> Iterator[ServedText]:
    """One for all tests: its processes take longer to start than most tests take."""
    bare = open_tokenizer(str(model_folder), model_folder, lambda _: None)
    text = served_text(bare, PromptEncoder(bare.tokenizer), 200)
    yield text
    text.close()


@pytest.fixture
def make_server() -> Iterator[Callable[..., FaultyServer]]:
    with ExitStack() as stack:

        def make(kind: str = "vllm", **fields: Any) -> FaultyServer:
            server = FaultyServer(kind, **{"text_of": text_of, "ids_of": ids_of, **fields})
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def open_engine(tiny_text: ServedText) -> Iterator[Callable[..., EndpointEngine]]:
    with ExitStack() as stack:

        def make(server: FaultyServer, limits: StreamLimits | None = None, slots: int = 4) -> EndpointEngine:
            connection = connect(server, limits)
            stack.callback(connection.close)
            return EndpointEngine(connection, tiny_text, max_batch_size=slots, place=server.url)

        yield make
