"""How far a model is served: behind its windows, and to where its positions would be scaled otherwise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from helix_jobs.engine.config import CacheConfig, EngineConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.architecture import check_architecture
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.errors import ModelError, UnsupportedArchitectureError
from tests.unit.engine.model_files import load, save_checkpoint
from tests.unit.engine.tiny_models import VOCAB_SIZE, reference_logits, request, tiny_config, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


WINDOWS = [
    ("mistral", {"sliding_window": 20}),
    ("phi3", {"sliding_window": 20}),
    # These two layer settings have no meaning for Mistral: every layer has the window.
    ("mistral", {"sliding_window": 20, "use_sliding_window": False}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention"] * 2}),
]


SLIDING_LAYERS = {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize(("architecture", "settings"), WINDOWS)
def test_a_windowed_model_is_served_beyond_its_window(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, settings: dict[str, Any]
) -> None:
    caplog.set_level("INFO", logger="helix_jobs")
    model = tiny_model(architecture, seed=3, **settings)
    models = load(save_checkpoint(tmp_path, model), "int8")
    assert models.max_context == 256
    assert "ends there" not in caplog.text
    engine = Engine(models, EngineConfig(), CacheConfig(num_blocks=60, block_size=4))
    prompts = [[(7 * i + n) % (VOCAB_SIZE - 1) + 1 for i in range(n)] for n in (15, 59)]
    results = engine.generate(request(str(len(prompt)), prompt, max_tokens=30, ignore_eos=True) for prompt in prompts)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.completion_tokens == 30
        logits = reference_logits(model, [*prompt, *result.output_token_ids])
        assert result.output_token_ids == tuple(logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist())


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("mistral", {"sliding_window": 256}),
        ("mistral", {"sliding_window": 4096}),
        ("mixtral", {"sliding_window": 256}),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 256}),
        *((family, {**SLIDING_LAYERS, "sliding_window": 256}) for family in ("dots1", "gpt_oss", "qwen2_moe")),
        ("llama", {"sliding_window": 60}),  # no module of it reads the setting
        ("qwen2", {"use_sliding_window": False, "sliding_window": 60}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 60, "max_window_layers": 2}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 60, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_a_window_without_effect_costs_nothing(architecture: str, settings: dict[str, Any]) -> None:
    description = describe(tiny_config(architecture, **settings))
    assert all(layer.attention.window is None for layer in description.layers)


@pytest.mark.parametrize("architecture", ["dots1", "gpt_oss", "ministral", "qwen2_moe"])
def test_layers_with_a_window_of_no_length(architecture: str) -> None:
    config = tiny_config(architecture, **SLIDING_LAYERS)
    config.sliding_window = None
    with pytest.raises(UnsupportedArchitectureError, match="layers of type 'sliding_attention' and no sliding_window"):
        check_architecture("m", config)


def test_long_rotary_scaling_is_served_to_the_end_of_the_context(tmp_path: Path) -> None:
    rope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 5.0, 6.0, 7.0]}
    model = tiny_model("phi3", original_max_position_embeddings=64, sliding_window=128, rope_scaling=rope)
    models = load(save_checkpoint(tmp_path, model))
    assert models.max_context == 256
    assert models.target.decoder.attention.spec.original_context == 64


def test_a_long_rotary_scaling_that_is_never_reached() -> None:
    rope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 5.0, 6.0, 7.0]}
    model = tiny_model("phi3", original_max_position_embeddings=256, rope_scaling=rope)
    assert build_decoder(model).attention.spec.original_context is None


@pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="OLMo 3 is served with transformers 5")
def test_layers_of_several_original_contexts() -> None:
    config = tiny_config("olmo3")
    config.rope_parameters = {
        kind: {**LONGROPE, "original_max_position_embeddings": length}
        for kind, length in (("full_attention", 64), ("sliding_attention", 32))
    }
    with pytest.raises(UnsupportedArchitectureError, match="has several original contexts"):
        check_architecture("m", config)


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        *((family, {"sliding_window": value}, "sliding_window") for family in ("mistral", "phi3") for value in (0, -5)),
        *(("qwen2", {**SLIDING_LAYERS, "sliding_window": value}, "sliding_window") for value in (0, -5)),
        *(
            ("phi3", {"original_max_position_embeddings": value, "rope_parameters": LONGROPE}, "original_max_position")
            for value in (0, -5)
        ),
        *(("llama", {"rope_parameters": {**LLAMA3, "rope_theta": x}}, "rope_theta") for x in (0.0, -1.0, math.nan)),
        *(("llama", {"rope_parameters": {**LLAMA3, "factor": x}}, "factor") for x in (0.0, -8.0, math.nan, math.inf)),
        *(("llama", {"rope_parameters": {**LLAMA3, "low_freq_factor": x}}, "low_freq") for x in (-1.0, math.nan, True)),
        ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 0}}, "original_max_position"),
        ("phi3", {"rope_parameters": {**LONGROPE, "short_factor": [1.0, 1.0, 0.0, 1.0]}}, "short_factor"),
        ("llama", {"head_dim": 7}, "head_dim 7 and rotates 7 of it, an odd number"),
    ],
)
def test_a_number_that_no_rotation_and_no_window_has(architecture: str, changes: dict[str, Any], message: str) -> None:
    config = tiny_config(architecture)
    for key, value in changes.items():
        setattr(config, "rope_scaling" if key == "rope_parameters" and TRANSFORMERS_MAJOR < 5 else key, value)
    with pytest.raises(ModelError, match=f"its configuration says {message}"):
        check_architecture("m", config)


@pytest.mark.parametrize(("factor", "rotated"), [(0.4, 6), (0.2, 3)])
def test_of_heads_that_are_rotated_in_part_that_part_is_even(factor: float, rotated: int) -> None:
    config = tiny_config("gpt_neox", hidden_size=90, num_attention_heads=6, head_dim=15)
    for key in ("partial_rotary_factor", "rotary_pct"):
        setattr(config, key, factor)
    if TRANSFORMERS_MAJOR >= 5:
        config.rope_parameters = {**config.rope_parameters, "partial_rotary_factor": factor}
    if rotated % 2 == 0:
        check_architecture("m", config)
        return
    with pytest.raises(ModelError, match=f"rotates {rotated} of it, an odd number"):
        check_architecture("m", config)


def test_a_window_that_is_turned_off_may_be_any_number() -> None:
    check_architecture("m", tiny_config("qwen2", use_sliding_window=False, sliding_window=0))


@pytest.mark.parametrize(
    ("name", "architecture", "settings", "context"),
    [
        ("Mistral-7B-v0.1", "mistral", {"max_position_embeddings": 32768, "sliding_window": 4096}, 32768),
        ("Mistral-7B-v0.3", "mistral", {"max_position_embeddings": 32768, "sliding_window": None}, 32768),
        ("Phi-3-mini-4k", "phi3", {"max_position_embeddings": 4096, "sliding_window": 2047}, 4096),
        (
            "Phi-3.5-mini",
            "phi3",
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "sliding_window": 262144,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            },
            131072,
        ),
        (
            "Qwen2.5-7B",
            "qwen2",
            {"max_position_embeddings": 32768, "sliding_window": 131072, "use_sliding_window": False},
            32768,
        ),
        ("gpt2", "gpt2", {"max_position_embeddings": 1024}, 1024),
    ],
)
def test_how_far_known_models_are_served(name: str, architecture: str, settings: dict[str, Any], context: int) -> None:
    config = tiny_config(architecture, **settings)
    check_architecture(name, config)
    assert config.max_position_embeddings == context
