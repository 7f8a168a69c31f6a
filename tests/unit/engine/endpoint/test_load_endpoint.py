"""From settings to an engine, and what is refused before anything is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.doctor.endpoint import check_endpoint
from helix_jobs.doctor.models import check_models
from helix_jobs.doctor.verdict import Level
from helix_jobs.engine.loading.bare_tokenizer import open_tokenizer
from helix_jobs.engine.loading.open_engine import device_name, load_engine
from helix_jobs.errors import ConfigurationError, EndpointUnreachableError, ModelError, TokenizerMismatchError
from helix_jobs.settings import Settings
from helix_jobs.worker.banner import WorkerBanner
from tests.faulty_server import Status
from tests.unit.engine.endpoint.served import ids_of, run, settings_for, tokenizer_folder
from tests.unit.engine.endpoint.served import prompt as prompt_of
from tests.unit.engine.tiny_settings import EOS, VOCAB_SIZE

if TYPE_CHECKING:
    from pathlib import Path


def quiet(_: str) -> None:
    """No progress."""


def test_the_engine_of_the_settings_needs_no_weights(make_server: Any, model_folder: Path) -> None:
    server = make_server(key="a-key-of-the-server")
    engine = load_engine(settings_for(model_folder, server, HELIX_ENDPOINT_KEY="a-key-of-the-server"), quiet)
    try:
        assert run(engine, prompt_of("hello"))[0].output_text == "olleh"  # type: ignore[arg-type]
        assert engine.info.max_batch_size == 64
        assert server.keys == ["Bearer a-key-of-the-server"]
        lines = dict(WorkerBanner(worker_id="w", engine=engine.info, broker="b", database="d").lines())
        assert lines["server"] == f"vLLM 0.11.2 at {server.url}"
        assert not {"KV cache", "device", "depth"} & lines.keys()
    finally:
        engine.close()


def test_slots_are_those_of_the_server_or_of_the_setting(make_server: Any, model_folder: Path) -> None:
    for kind, more, slots in (
        ("llama-server", {}, 3),
        ("llama-server", {"HELIX_MAX_BATCH_SIZE": "7"}, 7),
        ("llama-cpp-python", {}, 1),
    ):
        engine = load_engine(settings_for(model_folder, make_server(kind), **more), quiet)
        assert engine.info.max_batch_size == slots
        engine.close()


def test_no_device_of_this_machine_is_locked(make_server: Any, model_folder: Path) -> None:
    server = make_server()
    assert device_name(settings_for(model_folder, server)) == server.url


def refused(settings: Settings, error: type[Exception]) -> str:
    with pytest.raises(error) as raised:
        load_engine(settings, quiet)
    return str(raised.value)


def test_a_server_that_cannot_be_used_is_told_at_the_start(make_server: Any, model_folder: Path) -> None:
    server = make_server(key="secret-of-the-server")
    settings = settings_for(model_folder, server, HELIX_ENDPOINT_KEY="not-that-one")
    said = refused(settings, ConfigurationError)
    assert "set HELIX_ENDPOINT_KEY" in said
    assert "not-that-one" not in said
    server.key = None
    assert "serves no model 'other'" in refused(
        settings_for(model_folder, server, HELIX_ENDPOINT_MODEL="other"), ConfigurationError
    )
    server.models.append({"id": "other", "owned_by": "vllm"})
    assert "HELIX_ENDPOINT_MODEL to one of served/model, other" in refused(settings, ConfigurationError)
    del server.models[1]
    server.version = "0.10.1"
    assert "vLLM 0.10.1 does not have all" in refused(settings, ConfigurationError)
    server.status = Status(503, "loading")
    assert "wait until it is ready" in refused(settings, EndpointUnreachableError)
    server.status = Status(200, "<html>a page</html>")
    assert "OpenAI-compatible" in refused(settings, ConfigurationError)
    server.kill()
    assert "takes no connection" in refused(settings, EndpointUnreachableError)


def test_another_tokenizer_than_the_server_s_is_refused(make_server: Any, model_folder: Path) -> None:
    for kind in ("vllm", "llama-server"):
        server = make_server(kind, ids_of=lambda text: ids_of(text)[1:])
        assert "set HELIX_TARGET_MODEL" in refused(settings_for(model_folder, server), TokenizerMismatchError)
    server = make_server(ids_of=None)  # it does not tell
    load_engine(settings_for(model_folder, server), quiet).close()


def test_settings_that_do_not_fit_are_refused(make_server: Any, model_folder: Path, tmp_path: Path) -> None:
    settings = settings_for(model_folder, make_server(), HELIX_ADAPTERS=f"a={tmp_path}")
    assert "HELIX_ADAPTERS" in refused(settings, ConfigurationError)
    nowhere = Settings.from_environment({"HELIX_HOME": str(tmp_path), "HELIX_ENGINE": "endpoint"})
    assert "HELIX_ENDPOINT_URL is not set" in refused(nowhere, ConfigurationError)


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "host:8000", "http://", "http://me:secret@host", "http://host:99999", "http://host/?key=secret"],
)
def test_an_address_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="HELIX_ENDPOINT_URL") as error:
        Settings.from_environment({"HELIX_ENDPOINT_URL": url})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://host:8000", "http://host:8000"),
        ("HTTP://host:8000/v1/", "http://host:8000"),
        ("https://host/proxy/v1", "https://host/proxy"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
    ],
)
def test_an_address_may_end_with_the_version(given: str, address: str) -> None:
    assert Settings.from_environment({"HELIX_ENDPOINT_URL": given}).endpoint_url == address


def test_a_key_that_fits_no_header_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConfigurationError, match="HELIX_ENDPOINT_KEY") as error:
        Settings.from_environment({"HELIX_ENDPOINT_KEY": "secret\nX-More: 1"})
    assert "secret" not in str(error.value)


def test_settings_of_a_part_of_the_model_are_found(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    config = {"model_type": "sees_images", "text_config": {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 99}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 5]}))
    bare = open_tokenizer(str(folder), tmp_path, quiet)
    assert (bare.vocab_size, bare.max_context, bare.eos_token_ids) == (VOCAB_SIZE, 99, {EOS, 5})
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="vocab_size"):
        open_tokenizer(str(folder), tmp_path, quiet)


def test_doctor_asks_the_server(make_server: Any, model_folder: Path, tmp_path: Path) -> None:
    server = make_server()
    settings = settings_for(model_folder, server)
    (verdict,) = check_endpoint(settings)
    assert verdict.level is Level.OK
    assert verdict.finding == f"vLLM 0.11.2 at {server.url} serves served/model, up to 200 tokens"
    assert [one.level for one in check_models(settings)] == [Level.OK]
    assert check_endpoint(Settings.from_environment({"HELIX_HOME": str(tmp_path)})) == []
    (text,) = check_endpoint(settings_for(model_folder, make_server("openai")))
    assert text.level is Level.WARNING
    server.kill()
    (lost,) = check_endpoint(settings)
    assert (lost.level, lost.remedy is not None) == (Level.FAILED, True)
    (missing,) = check_models(settings_for(tmp_path, server))
    assert missing.finding.endswith("has no config.json and no tokenizer.json")
