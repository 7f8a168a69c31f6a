"""Models on the hub, described without their weights: a real HTTP server, and the hub's own library."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from helix_jobs.engine.loading.checkpoint import find_checkpoint, find_local_checkpoint
from helix_jobs.engine.loading.model_outline import model_outline
from helix_jobs.engine.loading.model_sizes import model_sizes
from helix_jobs.errors import ModelError, ModelNotFoundError, UnsupportedArchitectureError
from tests.unit.engine.loading.local_hub import LocalHub, library_hub
from tests.unit.engine.quantized_files import compressed_tensors_config
from tests.unit.engine.tiny_models import tiny_config, tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "someone/tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub with one model."""
    with library_hub(monkeypatch, tmp_path / "cache") as made:
        made.add(NAME, config(), model_safetensors=123_456, tokenizer_json=b"{}")
        yield made


def config(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {**json.loads(tiny_config().to_json_string()), "architectures": ["LlamaForCausalLM"]}
    return {**made, **changes}


def test_a_model_is_described_and_nothing_but_its_configuration_is_fetched(hub: LocalHub, tmp_path: Path) -> None:
    hub.kinds[NAME] = {"BF16": 38_928, "F32": 4}
    outline = model_outline(NAME, tmp_path)
    assert outline.sizes.weights == sum(parameter.numel() for parameter in tiny_model().parameters())
    assert (outline.model_type, outline.stored, outline.file_bytes) == ("llama", torch.bfloat16, 123_456)
    assert not outline.is_here
    assert hub.fetched == ["config.json"]
    # The cache has no part of it, so no later look takes it for a download that was broken off.
    assert find_local_checkpoint(NAME, tmp_path) is None


@pytest.mark.parametrize(
    ("quantization", "growth"),
    [
        # One scale a row of 128: 1 + 2 / 128 bytes a weight become 132 for 128 weights.
        (compressed_tensors_config("int-quantized", 8), 132 / (128 + 2)),
        # 16 bytes of codes, 2 of a scale and half a byte of a zero point become 16 + 4 + 1.
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, 21 / 18.5),
    ],
)
def test_a_quantised_model_takes_what_its_files_let_expect(
    hub: LocalHub, tmp_path: Path, quantization: dict[str, Any], growth: float
) -> None:
    wide = {"hidden_size": 128, "head_dim": 16, "num_attention_heads": 8, "intermediate_size": 128}
    sizes = model_sizes(NAME, tiny_config(**wide))
    matrices = sizes.products - sizes.vocab_size * sizes.hidden_size
    file_bytes = matrices + 2 * (sizes.weights - matrices)
    hub.add(NAME, config(**wide, quantization_config=quantization), model_safetensors=file_bytes)
    outline = model_outline(NAME, tmp_path)
    method = quantization["quant_method"]
    assert (outline.stored, outline.stored_name, outline.is_here) == (None, method, False)
    assert outline.sizes.blocks.weights == matrices
    assert outline.sizes.blocks.nbytes == pytest.approx(matrices * growth, abs=1)


def test_a_quantised_model_that_is_refused_is_not_fetched(hub: LocalHub, tmp_path: Path) -> None:
    quantization = {**compressed_tensors_config("int-quantized", 8), "kv_cache_scheme": {"num_bits": 8}}
    hub.add(NAME, config(quantization_config=quantization), model_safetensors=1)
    with pytest.raises(UnsupportedArchitectureError, match="kv_cache_scheme"):
        model_outline(NAME, tmp_path)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_hub_that_counts_no_weights_leaves_the_dtype_to_the_configuration(
    hub: LocalHub, tmp_path: Path, key: str
) -> None:
    written = config()
    written.pop("dtype", None)
    hub.add(NAME, {**written, key: "float16"}, model_safetensors=1)
    assert model_outline(NAME, tmp_path).stored is torch.float16
    hub.add(NAME, written, model_safetensors=1)
    assert model_outline(NAME, tmp_path).stored is None


@pytest.mark.parametrize(
    ("changes", "files", "expected"),
    [
        ({"model_type": "mamba"}, {}, (UnsupportedArchitectureError, "recurrent state instead of attention")),
        ({"is_causal": False}, {}, (UnsupportedArchitectureError, "attends in both directions")),
        ({"quantization": {"bits": 4}}, {}, (UnsupportedArchitectureError, "quantised with MLX")),
        ({}, {"hf_quant_config_json": b"{}"}, (UnsupportedArchitectureError, "quantised with ModelOpt")),
        ({}, {"adapter_config_json": b"{}"}, (UnsupportedArchitectureError, "merge it into them")),
        ({"num_hidden_layers": 10**9}, {}, (ModelError, "says 1000000000 layers")),
        ({"num_hidden_layers": "two"}, {}, (ModelError, "says 'two' layers")),
        ({"vocab_size": -1}, {}, (ModelError, "vocab_size -1")),
    ],
    ids=str,
)
def test_what_is_refused_says_why(
    hub: LocalHub,
    tmp_path: Path,
    changes: dict[str, Any],
    files: dict[str, bytes],
    expected: tuple[type[ModelError], str],
) -> None:
    error, message = expected
    hub.add(NAME, config(**changes), model_safetensors=1, **files)
    with pytest.raises(error, match=message):
        model_outline(NAME, tmp_path)


def test_a_configuration_that_is_no_json(hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories[NAME]["config.json"] = b"{'no json'}"
    with pytest.raises(ModelError, match=r"model someone/tiny: config\.json is not JSON; "):
        model_outline(NAME, tmp_path)


def test_a_configuration_that_transformers_cannot_read(hub: LocalHub, tmp_path: Path) -> None:
    hub.add(NAME, config(dtype="no such type"), model_safetensors=1)
    with pytest.raises(ModelNotFoundError, match="model someone/tiny on the hub has a configuration or a tokenizer"):
        model_outline(NAME, tmp_path)


def test_a_repository_without_safetensors(hub: LocalHub, tmp_path: Path) -> None:
    hub.add(NAME, config(), pytorch_model_bin=5)
    with pytest.raises(ModelNotFoundError, match="has no safetensors on the hub; convert it to safetensors"):
        model_outline(NAME, tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "mamba", None])
def test_a_repository_of_gguf_files_says_to_name_one(hub: LocalHub, tmp_path: Path, model_type: str | None) -> None:
    """With a configuration beside them, of any model type, and without one."""
    files: dict[str, bytes | int] = {"README.md": b"x", "tiny-Q4_K_M.gguf": 5, "tiny-Q8_0.GGUF": 9}
    described = {} if model_type is None else {"config.json": json.dumps(config(model_type=model_type)).encode()}
    hub.repositories[NAME] = {**files, **described}
    message = (
        "model someone/tiny has only .gguf files on the hub; name one of them, such as someone/tiny:tiny-Q4_K_M.gguf"
    )
    with pytest.raises(ModelNotFoundError, match=re.escape(message)):
        model_outline(NAME, tmp_path)
    if model_type != "mamba":
        with pytest.raises(ModelNotFoundError, match=re.escape(message)):
            find_checkpoint(NAME, tmp_path, lambda _: None)


def test_a_repository_of_nothing_that_is_served(hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories[NAME] = {"README.md": b"x"}
    for look in (lambda: model_outline(NAME, tmp_path), lambda: find_checkpoint(NAME, tmp_path, lambda _: None)):
        with pytest.raises(ModelNotFoundError, match=r"has no config\.json; give a transformers model"):
            look()


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("has_head", [False, True])
def test_whether_a_language_model_s_head_is_its_embedding_is_read_from_the_names_of_its_tensors(
    hub: LocalHub, tmp_path: Path, *, is_sharded: bool, has_head: bool
) -> None:
    inner = json.loads(tiny_config("mistral").to_json_string())
    del inner["tie_word_embeddings"]
    outer = {"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"], "text_config": inner}
    names = ["language_model.model.embed_tokens.weight", "vision_tower.head.weight"]
    names += ["language_model.lm_head.weight"] if has_head else []
    shards: dict[str, bytes | int] = {
        "model.safetensors.index.json": json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}).encode(),
        "a.safetensors": 5,
    }
    single: dict[str, bytes | int] = {"model.safetensors": save({name: torch.zeros(1) for name in names})}
    hub.repositories[NAME] = {"config.json": json.dumps(outer).encode(), **(shards if is_sharded else single)}
    expected = sum(
        parameter.numel() for parameter in tiny_model("mistral", tie_word_embeddings=not has_head).parameters()
    )
    assert model_outline(NAME, tmp_path).sizes.weights == expected
    assert "a.safetensors" not in hub.fetched


def test_a_name_that_the_hub_does_not_have(hub: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no directory here and not on the hub; check the name"):
        model_outline("someone/else", tmp_path)
    with pytest.raises(ModelNotFoundError, match="no name on the hub"):
        model_outline("some--one", tmp_path)


def test_a_licence_that_was_not_accepted(hub: LocalHub, tmp_path: Path) -> None:
    hub.gated.add(NAME)
    with pytest.raises(ModelNotFoundError, match="needs its licence accepted on the hub; do so and set HF_TOKEN"):
        model_outline(NAME, tmp_path)


def test_a_hub_that_does_not_answer(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"could not be fetched from the hub \(\w+\); check the name and the network, or give a directory"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # the port that discards
    with pytest.raises(ModelNotFoundError, match=message):
        model_outline(NAME, tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=message):
        model_outline(NAME, tmp_path)
    assert hub.fetched == []
