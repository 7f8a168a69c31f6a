"""Models in GGUF files equal what they were made of; what transformers' reader would lose is honoured or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.errors import UnsupportedArchitectureError
from tests.unit.engine.model_files import load, write_gguf
from tests.unit.engine.tiny_models import decoder_logits, reference_logits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

DENSE_ARCHITECTURES = ["llama", "qwen2", "qwen3", "phi3", "gpt2"]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def _protobuf(request: pytest.FixtureRequest) -> None:
    """transformers 4 reads Phi-3's tokenizer by way of it."""
    if TRANSFORMERS_MAJOR < 5 and "phi3" in request.node.name:
        pytest.importorskip("google.protobuf")


def equal(path: Path, model: Any) -> bool:
    got = decoder_logits(load(path, dtype="float32").target.decoder, range(3, 60))
    return torch.allclose(got, reference_logits(model, range(3, 60)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", DENSE_ARCHITECTURES)
def test_a_file_is_the_model_it_was_made_of(tmp_path: Path, architecture: str, *, tied: bool) -> None:
    path = tmp_path / "tiny.gguf"
    assert equal(path, write_gguf(path, architecture, tie_word_embeddings=tied))


def test_llama_3_rotary_factors_are_honoured(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert equal(path, write_gguf(path, rope_scaling=LLAMA3))


def test_a_head_may_be_wider_than_its_share(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert equal(path, write_gguf(path, "qwen3", head_dim=16))


def test_the_window_of_phi3_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    model = write_gguf(path, "phi3", {"attention.sliding_window": 5}, sliding_window=5)
    models = load(path, dtype="float32")
    assert models.target.decoder.attention.spec.windows == (5,)
    assert models.max_context == 256
    assert equal(path, model)


@pytest.mark.parametrize(
    ("architecture", "settings", "overrides", "message"),
    [
        ("llama", {"rope.scaling.type": "yarn"}, {}, r"the scaling of positions \(yarn\) cannot be read"),
        ("qwen2", {"rope.dimension_count": 4}, {}, "heads are rotated in part"),
        (
            "llama",
            {},
            {"attention_bias": True},
            r"8 of its weights \(first layers.0.self_attn.k_proj.bias\)",
        ),
    ],
)
def test_what_the_reader_would_lose_is_refused(
    tmp_path: Path, architecture: str, settings: dict[str, Any], overrides: dict[str, Any], message: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", architecture, settings, **overrides)
    with pytest.raises(UnsupportedArchitectureError, match=f"{message}.*; use the model's safetensors"):
        load(tmp_path / "tiny.gguf")


def test_scaling_written_by_the_name_none_is_none(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert equal(path, write_gguf(path, settings={"rope.scaling.type": "none"}))


@pytest.mark.parametrize("architecture", ["bloom", "plamo", "mamba"])
def test_an_architecture_the_reader_does_not_know_in_full(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes().replace(b"llama", f"{architecture:.5}".encode()))
    with pytest.raises(UnsupportedArchitectureError, match=r"of GGUF, supported are llama, qwen2, qwen3, phi3, gpt2"):
        load(path)
